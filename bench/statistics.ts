// What every benchmark reports of its samples.

export interface Summary {
  readonly samples: number;
  readonly median: number;
  readonly p99: number;
  readonly max: number;
}

export function summarize(samples: readonly number[]): Summary {
  const sorted = samples.toSorted((a, b) => a - b);
  const at = (fraction: number): number => sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * fraction))]!;
  return { samples: sorted.length, median: at(0.5), p99: at(0.99), max: sorted.at(-1)! };
}

/** Two or three significant digits, for tables. */
export function round(value: number): number {
  return Number(value.toPrecision(4));
}
