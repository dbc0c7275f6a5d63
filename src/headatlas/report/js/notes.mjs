/** The header, what the figure can and cannot tell, the figure in words, and where it all comes from. */

import { el } from "./dom.mjs";
import { count, plain } from "./format.mjs";

/** Model, lens, size and criterion, with the button for light and dark. */
export function createHeader(atlas) {
  const { data, thresholds } = atlas;
  const missing = atlas.mapped.filter((done) => !done).length;
  const size = `${atlas.nLayers} layers × ${atlas.nHeads} heads`;
  const categories = count(atlas.categories.length, "category", "categories");
  const facts = [
    ["Lens", data.lens],
    ["Heads", missing ? `${size} (${missing} layers not mapped)` : size],
    ["Relations", `${atlas.scored.length} of ${atlas.relations.length}, ${categories}`],
    ["Top k", `${thresholds.k}, copying ${thresholds.k_copy}`],
  ];
  return el(
    "header",
    {},
    el(
      "div",
      { class: "title" },
      el("p", { class: "quiet" }, "What the attention heads do"),
      el("h1", {}, data.model),
    ),
    el(
      "dl",
      { class: "facts" },
      ...facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))),
    ),
    createSchemeButton(),
  );
}

function createSchemeButton() {
  const root = document.documentElement;
  const dark = () => {
    const chosen = root.dataset.scheme;
    return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  };
  const button = el("button", { type: "button", class: "scheme plain" });
  const label = () => (button.textContent = dark() ? "Light" : "Dark");
  button.addEventListener("click", () => {
    root.dataset.scheme = dark() ? "light" : "dark";
    label();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", label);
  label();
  return button;
}

/** The line under the panels; it follows the criterion. @returns node, sync(thresholds). */
export function createCaption(atlas) {
  const node = el("p", { class: "quiet caption" });
  return {
    node,
    sync({ k, k_copy: kCopy, tau, criterion, q_max: q }) {
      const sure = criterion === "calibrated" ? ` and q ≤ ${plain(q)}` : "";
      const rule = `k = ${k} (copying ${kCopy}), score ≥ ${plain(tau)}${sure}`;
      node.textContent = atlas.data.caption.replace(atlas.data.rule, () => rule);
    },
  };
}

/** What this can and cannot tell. */
export function createCaveats(atlas) {
  return el(
    "section",
    { class: "caveats" },
    el("h2", {}, "What this can and cannot tell"),
    el(
      "ul",
      {},
      ...caveats(atlas.data).map(([lead, rest]) => el("li", {}, el("strong", {}, lead), ` ${rest}`)),
    ),
  );
}

function caveats(data) {
  const { tau, k, q_max: q } = data.thresholds;
  return [
    [
      "A colour is a count of categories.",
      `A head implements a relation when it ranks an accepted target among the top ${k} of the vocabulary ` +
        `(fewer for copying) for a share of the sources of at least τ, ${plain(tau)} unless moved above. ` +
        "Promoting and suppressing both count.",
    ],
    lensCaveat(data.lens),
    [
      "It says what a head writes if it attends, not whether it does.",
      "Only the value and output weights are read. Where the head looks is decided elsewhere.",
    ],
    [
      "A late state may already hold the answer.",
      "A head that only moves it looks like one that computes it. Control is the score of the state itself at " +
        "that layer, without any head; added is the share of sources that the head hits and the state does not. " +
        "Both are about promotion; suppression has no such control.",
    ],
    [
      "q asks one question.",
      `Would the head score as high if the targets were dealt to the sources at random? Of the rows with ` +
        `q ≤ ${plain(q)}, about that share or less is expected to be such chance. q does not say that the model uses ` +
        "the head. The intervals treat sources as independent draws and say nothing about other words.",
    ],
    ...targetCaveat(data.provenance),
    [
      "A blank cell is not an idle head.",
      "It only means that none of the relations asked passes the criterion there. Panels with more relations " +
        "have more chances.",
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
    `${evidence.map((each) => each[0].toUpperCase() + each.slice(1)).join(". ")}. Both hold for the atlas's own ` +
      "criterion, wherever τ is moved. A dash: not asked. A head that is not confirmed may have others that do the " +
      "same; ablation is not asked of heads that only suppress.",
  ];
}

function targetCaveat(provenance) {
  if (provenance.target_policy !== "first-token") return [];
  return [
    [
      "Targets count by their first token.",
      "A target of several tokens is a hit when its first token is. A first token may begin many words, so " +
        "such a hit says less than one of a whole word.",
    ],
  ];
}

function lensCaveat(lens) {
  if (lens === "maps") {
    return [
      "The lens maps reads weights only.",
      "A word's state is its embedding after the first block's MLP, at every later layer. It sees sources of one " +
        "token. In some models that state is far from what heads really read, and nearly all scores are then 0.",
    ];
  }
  if (lens === "neutral") {
    return [
      "The lens neutral is not weights only.",
      "It takes the model's own state of a word after short neutral prefixes, averaged. That makes it nearly a " +
        "repeat of inference without context, so agreement with such inference is weak evidence.",
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
