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
  /** The fragment it opens with where its address has none. */
  opens: string;
  packed: { ranks: Section; words: Section; heads: Section; salience: Section | null };
}
