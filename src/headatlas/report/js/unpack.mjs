/** Unpacking the page's numbers and words: gzip in base64, byte plane by byte plane (report/packed.py). */

/** A fixed-point number that is not there. */
const MISSING = -(2 ** 31);

const TYPES = { u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, i4: Int32Array, f8: Float64Array };

/**
 * The arrays of a section by name; `json` is what travels with them as JSON values, null where nothing does.
 *
 * @param {{arrays: [string, string, number][], bytes: string}} section
 * @returns {Promise<Record<string, any>>}
 */
export async function unpack(section) {
  const text = atob(section.bytes);
  const squeezed = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i += 1) squeezed[i] = text.charCodeAt(i);
  const stream = new Blob([squeezed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const raw = new Uint8Array(await new Response(stream).arrayBuffer());
  const out = { json: null };
  let at = 0;
  for (const [name, kind, length] of section.arrays) {
    const values = new TYPES[kind](length);
    const size = values.BYTES_PER_ELEMENT;
    const bytes = new Uint8Array(values.buffer);
    for (let plane = 0; plane < size; plane += 1) {
      for (let i = 0; i < length; i += 1) bytes[i * size + plane] = raw[at + plane * length + i];
    }
    at += size * length;
    out[name] = values;
  }
  if (out.json) out.json = JSON.parse(new TextDecoder().decode(out.json));
  return out;
}

/** Running sums of steps. */
export function sums(steps) {
  const out = new Uint32Array(steps.length);
  let sum = 0;
  for (let i = 0; i < steps.length; i += 1) {
    sum += steps[i];
    out[i] = sum;
  }
  return out;
}

/** Where each of consecutive runs begins, and where the last one ends. */
export function starts(counts) {
  const out = new Uint32Array(counts.length + 1);
  out.set(sums(counts), 1);
  return out;
}

/** Whole multiples of 10^-digits as numbers; NaN where there is none. */
export function unfixed(values, digits = 4) {
  const unit = 10 ** digits;
  return Float64Array.from(values, (value) => (value === MISSING ? NaN : value / unit));
}
