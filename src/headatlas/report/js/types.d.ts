/** The shape of the data inside a page, as report/data.py writes them. */

/** What an atlas is read with. */
export interface Thresholds {
  k: number;
  k_copy: number;
  tau: number;
  q_max: number;
  criterion: "tau" | "calibrated";
}

/** Columns of equal length: one entry for each head that hits at least one source. */
export interface Cells {
  /** Differences of layer * n_heads + head, ascending. */
  at: number[];
  /** Numbers of sources, out of n_sources. */
  hits: number[];
  suppressed: number[];
  added: number[];
  q: (number | null)[];
  suppression_q: (number | null)[];
  /** 1: asked with context, 2: by ablation; 4 and 8: confirmed. */
  confirmed?: number[];
}

export interface Dropped {
  reason: string;
  count: number;
  examples: string[];
}

export interface RelationData {
  name: string;
  title: string;
  /** Index into the categories. */
  category: number;
  copying: boolean;
  k: number;
  n_pairs: number;
  n_sources: number;
  n_targets: number;
  /** Why it could not be scored, or null. */
  left_out: string | null;
  dropped: Dropped[];
  /** A number of sources per layer; null where the layer is not mapped. */
  control?: (number | null)[];
  cells?: Cells;
}

export interface PageData {
  format: number;
  model: string;
  lens: string;
  caption: string;
  rule: string;
  alternative: string;
  in_words: string;
  n_layers: number;
  n_heads: number;
  layers_done: (0 | 1)[];
  thresholds: Thresholds;
  evidence: string[] | null;
  categories: string[];
  relations: RelationData[];
  provenance: Record<string, unknown>;
}
