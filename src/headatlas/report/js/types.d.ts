/** The shape of the data inside a page, as report/data.py and report/packed.py write them: names that every module knows. */

/** What an atlas is read with. */
interface Thresholds {
  k: number;
  k_copy: number;
  tau: number;
  q_max: number;
  criterion: "tau" | "calibrated";
}

/** Arrays one after the other, compressed, as text; unpack.mjs reads them. */
interface Section {
  /** Name, type (u1, u2, u4, i4, f8) and length of each. */
  arrays: [string, string, number][];
  /** Base64 of gzip. */
  bytes: string;
}

interface Dropped {
  reason: string;
  count: number;
  examples: string[];
}

interface RelationData {
  name: string;
  title: string;
  /** Index into the categories. */
  category: number;
  copying: boolean;
  n_pairs: number;
  n_sources: number;
  n_targets: number;
  /** Why it could not be scored, or null. */
  left_out: string | null;
  dropped: Dropped[];
}

/** One atlas and the next, head by head (report/comparison.py). */
interface Step {
  a: string;
  b: string;
  q_max: number;
  lost: number;
  gained: number;
  /** Sentences. */
  words: string;
  /** Cells that the page does not get. */
  left_out: number;
  cells: Section;
}

/** The best head of a relation in one atlas. */
interface BestHead {
  layer: number;
  head: number;
  score: number;
  low: number;
  high: number;
  depth: number;
  n_implementing: number;
}

/** Spearman's correlation of two atlases over relations, null where they are too few. */
interface Agreement {
  first: string;
  second: string;
  score: number | null;
  score_p: number | null;
  n_score: number;
  depth: number | null;
  depth_p: number | null;
  n_depth: number;
}

interface Comparison {
  labels: string[];
  captions: string[];
  /** Relation → why it is not compared. */
  left_out: Record<string, string>;
  /** Why there are no steps; empty where there are. */
  not_by_head: string;
  agreement: Agreement[];
  relations: { name: string; title: string; category: string; atlases: (BestHead | null)[] }[];
  steps: Step[];
  scores: Section | null;
}

interface PageData {
  format: number;
  model: string;
  lens: string;
  caption: string;
  rule: string;
  alternative: string;
  in_words: string;
  n_layers: number;
  n_heads: number;
  /** Heads that share keys and values. */
  group_size: number;
  /** 1 where a layer is mapped, else 0. */
  layers_done: number[];
  layers_without_heads: number[];
  /** Ranks are stored below it. */
  ceiling: number;
  thresholds: Thresholds;
  evidence: string[] | null;
  /** Kinds of tested statements and how they are called in words. */
  statements: Record<string, string>;
  categories: string[];
  relations: RelationData[];
  provenance: Record<string, unknown>;
  /** The atlases before this one; null on the page of one atlas. */
  comparison: Comparison | null;
  /** The fragment it opens with where its address has none. */
  opens: string;
  packed: { ranks: Section; words: Section; heads: Section; salience: Section | null };
}
