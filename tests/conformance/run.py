#!/usr/bin/env python3
"""Autobahn|Testsuite's fuzzing client against the gateway's WebSockets: `make conformance`.

What the surfaces send is JSON of their own, so a build with the feature `echo` answers at /v1/echo: it sends back what
it gets through the very type that the surfaces read and write with (src/http/wire.rs). The cases 12.* and 13.* are left
out: they are about permessage-deflate, which the gateway does not offer.

The suite needs CPython 2.7 with pip. It is looked for in ONLOOKER_PYTHON27, on PATH and among pyenv's versions. Where
there is none this says so and succeeds, or fails with ONLOOKER_CONFORMANCE=required.

A case fails where the suite says FAILED, WRONG CODE or UNCLEAN of what was done or of how it was closed, or anything
else but OK, NON-STRICT and INFORMATIONAL. The suite's own pages are in target/conformance/reports/index.html.
"""

import collections
import glob
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
REQUIREMENTS = HERE / "requirements.txt"
# Cases of the pinned suite without 12.* and 13.*: a run that stopped before its end is no pass.
CASES = 301
GOOD = ("OK", "NON-STRICT", "INFORMATIONAL")
SUITE_WITHIN = 900
PROBE = """
import sys, platform, ssl, pip
sys.exit(not (sys.version_info[:2] == (2, 7) and platform.python_implementation() == "CPython"))
"""


def python27():
    """A CPython 2.7 that runs and has pip. What pyenv puts on PATH may be a name only."""
    pyenv = os.environ.get("PYENV_ROOT", os.path.expanduser("~/.pyenv"))
    found = [os.environ.get("ONLOOKER_PYTHON27"), shutil.which("python2.7"), shutil.which("python2")]
    found += sorted(glob.glob(f"{pyenv}/versions/2.7*/bin/python2.7"), reverse=True)
    for program in filter(None, found):
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        try:
            if subprocess.run([program, "-c", PROBE], **quiet, check=False).returncode == 0:
                return program
        except OSError:
            continue
    return None


def install(python, base):
    """Puts the pinned suite where PYTHONUSERBASE points, once for each list of versions."""
    pinned = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    mark = base / "installed"
    if mark.exists() and mark.read_text() == f"{python} {pinned}":
        return
    print("==> Autobahn|Testsuite", flush=True)
    shutil.rmtree(base, ignore_errors=True)
    options = ["--user", "--ignore-installed", "--no-deps", "--require-hashes", "--no-warn-script-location"]
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *options, "-r", REQUIREMENTS]
    # pip says in every run that Python 2.7 is old; what matters is whether it installs.
    quiet = {"PYTHONUSERBASE": str(base), "PYTHONWARNINGS": "ignore"}
    subprocess.run(command, env=os.environ | quiet, check=True)
    mark.write_text(f"{python} {pinned}")


def build():
    """The gateway with the feature `echo`; returns the program's path."""
    print("==> building with the feature echo", flush=True)
    cargo = os.environ.get("CARGO", "cargo").split()
    command = [*cargo, "build", "--bin", "onlooker", "--features", "echo", "--message-format", "json-render-diagnostics"]
    said = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    artifacts = (json.loads(line) for line in said.splitlines())
    return next(a["executable"] for a in artifacts if a.get("executable") and a["target"]["name"] == "onlooker")


def run_suite(program, python, work):
    """Runs every case; returns what the suite says of each."""
    command = [program, "serve", "--ephemeral", "--listen", "127.0.0.1:0"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("ONLOOKER_")}
    env["ONLOOKER_LOG"] = "error"
    gateway = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
    try:
        said = gateway.stdout.readline()
        address = said.strip().removeprefix("listening on http://")
        if address == said.strip():
            sys.exit(f"the gateway does not listen: {said!r}")
        reports = work / "reports"
        shutil.rmtree(reports, ignore_errors=True)
        spec = {
            "outdir": str(reports),
            "servers": [{"agent": "Onlooker", "url": f"ws://{address}/v1/echo"}],
            "cases": ["*"],
            "exclude-cases": ["12.*", "13.*"],
            "exclude-agent-cases": {},
        }
        (work / "spec.json").write_text(json.dumps(spec))
        print("==> the suite, about a minute", flush=True)
        suite = [python, "-m", "autobahntestsuite.wstest", "-m", "fuzzingclient", "-s", work / "spec.json"]
        paths = env | {"PYTHONUSERBASE": str(work / "python")}
        with open(work / "suite.log", "w") as log:
            subprocess.run(suite, cwd=work, env=paths, stdout=log, stderr=log, timeout=SUITE_WITHIN, check=True)
        return json.loads((reports / "index.json").read_text())["Onlooker"]
    finally:
        gateway.terminate()
        gateway.wait(timeout=30)


def outcome(case):
    """What counts of a case: the worse of what was done and of how it was closed."""
    both = (case["behavior"], case["behaviorClose"])
    if any(said not in GOOD for said in both):
        return "failed"
    return {"OK": "passed", "NON-STRICT": "non-strict", "INFORMATIONAL": "informational"}[case["behavior"]]


def report(cases):
    """Prints the table; whether nothing failed and nothing is missing."""
    by_number = sorted(cases.items(), key=lambda item: [int(part) for part in item[0].split(".")])
    names = collections.defaultdict(list)
    for name, case in by_number:
        names[outcome(case)].append(name)
    print(f"{'passed':>8} {'non-strict':>12} {'informational':>15} {'failed':>8} {'cases':>8}")
    counts = [len(names[kind]) for kind in ("passed", "non-strict", "informational", "failed")]
    print("{:8} {:12} {:15} {:8} {:8}".format(*counts, len(cases)))
    for kind in ("non-strict", "informational"):
        if names[kind]:
            print(f"{kind}: {', '.join(names[kind])}")
    for name in names["failed"]:
        case = cases[name]
        print(f"FAILED {name}: {case['behavior']}, closing {case['behaviorClose']}, close code {case['remoteCloseCode']}")
    if len(cases) < CASES:
        print(f"FAILED: the suite ran {len(cases)} of {CASES} cases")
    return not names["failed"] and len(cases) >= CASES


def main():
    python = python27()
    if python is None:
        print("Not run: Autobahn|Testsuite needs a CPython 2.7 with pip, and there is none here (pyenv has 2.7.18).")
        return os.environ.get("ONLOOKER_CONFORMANCE") == "required"
    program = build()
    work = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve() / "conformance"
    work.mkdir(parents=True, exist_ok=True)
    install(python, work / "python")
    return not report(run_suite(program, python, work))


if __name__ == "__main__":
    sys.exit(main())
