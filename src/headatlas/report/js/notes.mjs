/** The header, what the figure can and cannot tell, the figure in words, and where it all comes from. */

import { button, el, hint } from "./dom.mjs";
import { count, plain } from "./format.mjs";
import { coverage } from "./measures.mjs";

/** Model, lens, size and coverage, with the button for light and dark. @returns node, sync(view, state). */
export function createHeader(atlas, change) {
  const colourBy = (colour) => change({ colour });
  const scheme = createSchemeButton(change);
  const { data } = atlas;
  const missing = atlas.mapped.filter((done) => !done).length - data.layers_without_heads.length;
  const size = `${atlas.nLayers} layers × ${atlas.nHeads} heads`;
  const [lead, rest] = lensCaveat(data.lens);
  const covered = button("", () => colourBy("statements"), {
    class: "link",
    title: "Colour the figure by it",
  });
  const facts = [
    ["Lens", el("span", {}, data.lens, " ", hint("what it reads", lead, " ", rest))],
    ["Heads", missing > 0 ? `${size} (${missing} layers not mapped)` : size],
    [
      "Relations",
      `${atlas.scored.length} of ${atlas.relations.length}, ` +
        `${count(atlas.categories.length, "category", "categories")}`,
    ],
    [
      "Heads with a tested statement",
      el(
        "span",
        {},
        covered,
        " ",
        hint(
          "counted how?",
          "A relation that passes with q as well, also where the score alone colours the figure (none, at " +
            "a k without q); a behaviour that is called; or a description that picks out held-out " +
            "mappings of the head. A covered head may do more; one without a statement may do something " +
            "that was not asked. Most heads of most models attend to the first position, which says " +
            "that a head rests.",
        ),
      ),
    ],
  ];
  const { labels, steps } = data.comparison ?? { labels: [], steps: [] };
  if (labels.length) {
    const { lost, gained } = steps[steps.length - 1] ?? {};
    const changed = () =>
      button(`${lost} lost, ${gained} gained`, () => colourBy("change"), {
        class: "link",
        title: "Colour the figure by it",
      });
    const others = labels.slice(0, -1).join(", ");
    facts.push([
      "Compared with",
      el("span", {}, others, steps.length > 0 && ": ", steps.length > 0 && changed()),
    ]);
  }
  const node = el(
    "header",
    {},
    el("h1", {}, data.model, el("span", { class: "hidden" }, ": what its attention heads do")),
    el(
      "dl",
      { class: "facts" },
      ...facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))),
    ),
    scheme.node,
  );
  return {
    node,
    sync(view, state) {
      covered.textContent = coverageWords(view);
      scheme.follow(state);
    },
  };
}

function coverageWords(view) {
  const { any, more, total } = coverage(view);
  const behaviours = view.heads.behaviours.length ? `, ${more} beyond a first-position sink` : "";
  return `${any} of ${total}${behaviours}`;
}

function createSchemeButton(change) {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const { dataset } = document.documentElement;
  const other = () => ((dataset.scheme ?? (system.matches ? "dark" : "light")) === "dark" ? "light" : "dark");
  const node = button("", () => change({ scheme: other() }), { class: "scheme" });
  const label = () => (node.textContent = other() === "light" ? "Light" : "Dark");
  system.addEventListener("change", label);
  return {
    node,
    follow({ scheme }) {
      if (scheme) dataset.scheme = scheme;
      else delete dataset.scheme;
      label();
    },
  };
}

/** What this can and cannot tell. */
export function createCaveats(atlas) {
  return el(
    "section",
    { class: "caveats" },
    el(
      "details",
      {},
      el("summary", {}, el("h2", {}, "What this can and cannot tell")),
      el(
        "ul",
        {},
        ...caveats(atlas.data).map(([lead, rest]) => el("li", {}, el("strong", {}, lead), ` ${rest}`)),
      ),
    ),
  );
}

function caveats(data) {
  const { tau, k, q_max: q, criterion } = data.thresholds;
  return [
    [
      "A colour is a count of categories.",
      `A head implements a relation when it ranks an accepted target among the top ${k} of the ` +
        `vocabulary (fewer for copying) for a share of the sources of at least τ, ${plain(tau)} unless ` +
        "moved above. Promoting and suppressing both count.",
    ],
    lensCaveat(data.lens),
    [
      "It says what a head writes if it attends, not whether it does.",
      "Only the value and output weights are read. Where the head looks is decided elsewhere.",
    ],
    [
      "A late state may already hold the answer.",
      "A head that only moves it looks like one that computes it. Control is the score of the state " +
        "itself at that layer, without any head; added is the share of sources that the head hits and " +
        "the state does not. Both are about promotion; suppression has no such control.",
    ],
    [
      "q asks one question.",
      "Would the head score as high if the targets were dealt to the sources at random? Of the rows " +
        `with q ≤ ${plain(q)}, about that share or less is expected to be such chance. ` +
        (criterion === "tau" ? "The atlas is read by the score alone, which is held to no q. " : "") +
        "q does not say " +
        "that the model uses the head. The intervals treat sources as independent draws and say nothing " +
        "about other words.",
    ],
    ...targetCaveat(data.provenance),
    [
      "A blank cell is not an idle head.",
      "It only means that none of the relations asked passes the criterion there. Panels with more " +
        "relations have more chances.",
    ],
    evidenceCaveat(data.evidence),
  ];
}

function evidenceCaveat(evidence) {
  if (!evidence) {
    return [
      "This is no proof of cause.",
      "Independent evidence comes from the heads' outputs in context, from attention, and from ablation.",
    ];
  }
  return [
    "Evidence confirms some heads.",
    `${evidence.map((each) => each[0].toUpperCase() + each.slice(1)).join(". ")}. Both hold for the ` +
      "atlas's own criterion, wherever τ is moved. A dash: not asked. A head that is not confirmed may " +
      "have others that do the same; ablation is not asked of heads that only suppress.",
  ];
}

function targetCaveat(provenance) {
  if (provenance.target_policy !== "first-token") return [];
  return [
    [
      "Targets count by their first token.",
      "A target of several tokens is a hit when its first token is. A first token may begin many " +
        "words, so such a hit says less than one of a whole word.",
    ],
  ];
}

function lensCaveat(lens) {
  if (lens === "maps") {
    return [
      "The lens maps reads weights only.",
      "A word's state is its embedding after the first block's MLP, at every later layer. It sees " +
        "sources of one token. In some models that state is far from what heads really read, and nearly " +
        "all scores are then 0.",
    ];
  }
  if (lens === "neutral") {
    return [
      "The lens neutral is not weights only.",
      "It takes the model's own state of a word after short neutral prefixes, averaged. That makes it " +
        "nearly a repeat of inference without context, so agreement with such inference is weak " +
        "evidence.",
    ];
  }
  return [
    `The lens is ${lens}.`,
    "It decides what a head is assumed to read; other lenses give other scores.",
  ];
}

/** The figure in words. */
export function createInWords(atlas) {
  return el(
    "details",
    { class: "in-words" },
    el("summary", {}, "The figure in words"),
    el("p", {}, atlas.data.in_words),
    el("p", { class: "quiet" }, "Said of the page as it opens; it does not follow the controls."),
  );
}

/** Where everything comes from. */
export function createProvenance(atlas) {
  return el(
    "section",
    {},
    el(
      "details",
      { class: "provenance" },
      el("summary", {}, el("h2", {}, "Provenance")),
      tree(atlas.data.provenance),
    ),
  );
}

function tree(value) {
  if (value === null || typeof value !== "object") return document.createTextNode(leaf(value));
  if (Array.isArray(value) && value.every((item) => item === null || typeof item !== "object")) {
    return document.createTextNode(value.map(leaf).join(", ") || "none");
  }
  const entries = Object.entries(value);
  if (!entries.length) return document.createTextNode("none");
  return el("dl", {}, ...entries.flatMap(([name, item]) => [el("dt", {}, name), el("dd", {}, tree(item))]));
}

function leaf(value) {
  if (value === null) return "–";
  if (value === "") return "(empty)";
  // Prefixes may be a newline or a space; quoted, they can be seen.
  return typeof value === "string" && value.trim() !== value ? JSON.stringify(value) : String(value);
}
