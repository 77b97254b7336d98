// What is asked of each server so that both can be asked the same: how one joins it, and what it says back.

const sessionId = process.env.SESSION_ID;

// An application of npm's server that sends everything back.
const reference = {
  name: "reference",
  auth: "",
  // A message that one server can be told from another by, and how its answer begins.
  message: (text) => `42["message",${JSON.stringify(text)}]`,
  answer: (text) => `42["message-back",${JSON.stringify(text)}]`,
};

// The gateway knows messages to a session only, and refuses what is none on the event `error`.
const gateway = {
  name: "gateway",
  auth: JSON.stringify({ sessionId }),
  message: (text) => `42["message",{"actionType":${JSON.stringify(text)}}]`,
  answer: () => '42["error",{"success":false,',
};

export const target = { reference, gateway }[process.env.TARGET];

// What every server answers without an application: a packet of a namespace that there is not.
export const unknown = (name) => `40/${name},`;
export const refused = (name) => `44/${name},{"message":"Invalid namespace"}`;

export async function join(connection) {
  await (connection.post ?? connection.send).call(connection, `40${target.auth}`);
  const [joined] = await connection.packets(1);
  if (!joined.startsWith("40{")) throw new Error(`not joined: ${joined}`);
  return JSON.parse(joined.slice(2));
}
