// What every benchmark reports of its samples.

export interface Summary {
  readonly samples: number;
  readonly median: number;
  readonly p99: number;
  readonly max: number;
}

/** Percentiles by the nearest rank: of a hundred samples, the p99 is the second largest. */
export function summarize(samples: readonly number[]): Summary {
  const sorted = samples.toSorted((a, b) => a - b);
  const at = (fraction: number): number => sorted[Math.max(0, Math.ceil(sorted.length * fraction) - 1)]!;
  return { samples: sorted.length, median: at(0.5), p99: at(0.99), max: sorted.at(-1)! };
}

/** One summary for each field of the samples. */
export function summarizeFields<T extends Readonly<Record<keyof T, number>>>(
  samples: readonly T[],
): Record<keyof T, Summary> {
  const names = Object.keys(samples[0]!) as (keyof T)[];
  return Object.fromEntries(names.map(name => [name, summarize(samples.map(sample => sample[name]))])) as
    Record<keyof T, Summary>;
}

/** How many values are at most each bound and above the one before it, and how many are above all, by `≤ bound` and `more`. */
export function histogram(values: readonly number[], bounds: readonly number[]): Record<string, number> {
  const counts = Object.fromEntries([...bounds.map(bound => `≤ ${bound}`), 'more'].map(name => [name, 0]));
  for (const value of values) {
    const bound = bounds.find(one => value <= one);
    counts[bound === undefined ? 'more' : `≤ ${bound}`]!++;
  }
  return counts;
}

/** Four significant digits, for tables. */
export function round(value: number): number {
  return Number(value.toPrecision(4));
}
