//! What the shop sells.

/// A product. `picture` is the inside of an SVG with a 200 × 160 view box.
pub struct Product {
    pub slug: &'static str,
    pub name: &'static str,
    pub line: &'static str,
    pub description: &'static str,
    pub cents: u32,
    pub(super) tint: (&'static str, &'static str),
    pub(super) picture: &'static str,
}

impl Product {
    pub const ALL: &'static [Product] = &[
        Product {
            slug: "enamel-mug",
            name: "Enamel mug",
            line: "Steel, 350 ml",
            description: "A mug for porches, piers and early trains. Enamelled steel with a rolled rim; \
                          light to carry and hard to break.",
            cents: 18_00,
            tint: ("#dcebe8", "#b9d6d1"),
            picture: r##"<path d="M128 66h14a18 18 0 0 1 0 36h-14" fill="none" stroke="#1f4e5a" stroke-width="8"/><path d="M62 50h68v58a14 14 0 0 1-14 14H76a14 14 0 0 1-14-14z" fill="#fdfcf9"/><path d="M62 50h68v7H62z" fill="#1f4e5a"/><circle cx="82" cy="80" r="3" fill="#1f4e5a"/><circle cx="104" cy="92" r="3" fill="#1f4e5a"/><circle cx="88" cy="106" r="2.5" fill="#1f4e5a"/><circle cx="114" cy="74" r="2.5" fill="#1f4e5a"/>"##,
        },
        Product {
            slug: "reading-lamp",
            name: "Reading lamp",
            line: "Brass and linen",
            description: "Warm, dimmable light over a page or a keyboard. The arm stays where you leave it.",
            cents: 64_00,
            tint: ("#fbe9cf", "#f3cf9d"),
            picture: r##"<path d="M70 128h52" stroke="#4a3a26" stroke-width="8" stroke-linecap="round"/><path d="M96 126 84 82l34-32" fill="none" stroke="#a8742c" stroke-width="6" stroke-linejoin="round"/><circle cx="84" cy="82" r="6" fill="#4a3a26"/><path d="m104 32 44 30-16 14-46-18z" fill="#4a3a26"/><path d="m132 76 34 52H96l26-46z" fill="#fff6dc" opacity=".7"/>"##,
        },
        Product {
            slug: "wool-blanket",
            name: "Wool blanket",
            line: "130 × 180 cm",
            description: "Woven from undyed wool with one coloured edge. For sofas, decks and long calls.",
            cents: 89_00,
            tint: ("#efe3df", "#dcc3bb"),
            picture: r##"<rect x="48" y="84" width="104" height="38" rx="12" fill="#f7f1e8"/><rect x="52" y="58" width="96" height="34" rx="12" fill="#fffaf2"/><path d="M52 74h96M48 104h104" stroke="#b4533c" stroke-width="7"/><path d="M52 84h96M48 114h104" stroke="#d9907c" stroke-width="3"/><path d="M64 122v10m12-10v10m12-10v10m12-10v10m12-10v10m12-10v10m12-10v10" stroke="#b4533c" stroke-width="2.5"/>"##,
        },
        Product {
            slug: "field-notebook",
            name: "Field notebook",
            line: "96 pages, dotted",
            description: "Sewn, so that it lies flat, with a cover that takes rain and pockets well.",
            cents: 12_50,
            tint: ("#e3e7d6", "#c7d0ad"),
            picture: r##"<rect x="64" y="34" width="76" height="96" rx="6" fill="#4d6136"/><path d="M64 40a6 6 0 0 1 6-6h8v96h-8a6 6 0 0 1-6-6z" fill="#394a27"/><rect x="90" y="52" width="38" height="22" rx="3" fill="#f4f1e4"/><path d="M96 60h26m-26 7h16" stroke="#4d6136" stroke-width="2.5"/><path d="M128 34v96" stroke="#d9a13b" stroke-width="4"/>"##,
        },
        Product {
            slug: "ink-pen",
            name: "Ink pen",
            line: "Refillable, fine",
            description: "A pen with a steel nib that starts at once, even after a week in a drawer.",
            cents: 34_00,
            tint: ("#dfe4f2", "#bcc7e4"),
            picture: r##"<g transform="rotate(38 100 80)"><rect x="36" y="70" width="78" height="20" rx="9" fill="#26355f"/><rect x="100" y="70" width="12" height="20" fill="#d9a13b"/><path d="M112 71h26l10 9-10 9h-26z" fill="#3b4f88"/><path d="m146 75 22 5-22 5z" fill="#d9a13b"/><path d="M46 66h40" stroke="#d9a13b" stroke-width="4" stroke-linecap="round"/></g>"##,
        },
        Product {
            slug: "clay-planter",
            name: "Clay planter",
            line: "With saucer, 14 cm",
            description: "Unglazed clay that lets roots breathe. The plant is not included, the saucer is.",
            cents: 22_00,
            tint: ("#e2efe0", "#bfdcbb"),
            picture: r##"<path d="M100 84c-6-26-24-34-36-34 2 18 16 32 36 34zm0 0c4-32 22-42 40-44-2 24-18 40-40 44zm0 0c-2-24 0-40 4-56 12 16 10 38-4 56z" fill="#3f7d4e"/><path d="M68 82h64l-9 42H77z" fill="#c4683f"/><path d="M64 76h72v12H64z" fill="#d57c50"/><path d="M70 126h60v6H70z" fill="#a85430"/>"##,
        },
    ];

    /// The product with this name in URLs.
    pub fn find(slug: &str) -> Option<&'static Product> {
        Self::ALL.iter().find(|product| product.slug == slug)
    }
}

/// A price as the pages print it.
pub(super) fn price(cents: u32) -> String {
    format!("€{}.{:02}", cents / 100, cents % 100)
}
