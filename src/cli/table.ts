// Plain tables for people: two columns, the first as wide as its widest entry.

export type TableRow = readonly [label: string, value: string];

/** A value of several lines stays in its column. */
export function formatTable(rows: readonly TableRow[], indent = ''): string {
  const width = Math.max(0, ...rows.map(([label]) => label.length)) + 2;
  const gap = `\n${indent}${' '.repeat(width)}`;
  return rows.map(([label, value]) => `${indent}${label.padEnd(width)}${value.replaceAll('\n', gap)}\n`).join('');
}
