// Plain tables for people: labels with values, and rows of columns under a heading.

export type TableRow = readonly [label: string, value: string];

/** A value of several lines stays in its column. */
export function formatTable(rows: readonly TableRow[], indent = ''): string {
  const width = Math.max(0, ...rows.map(([label]) => label.length)) + 2;
  const gap = `\n${indent}${' '.repeat(width)}`;
  return rows.map(([label, value]) => `${indent}${label.padEnd(width)}${value.replaceAll('\n', gap)}\n`).join('');
}

/**
 * Columns as wide as their widest entry; those of numbers stand to the right.
 * @param rows as many entries each as there are headings
 */
export function formatColumns(
  headings: readonly string[], rows: readonly (readonly string[])[], numeric: ReadonlySet<number>,
): string {
  const lines = [headings, ...rows];
  const widths = headings.map((_, column) => Math.max(...lines.map((line) => line[column]!.length)));
  return lines.map((line) => {
    const cells = line.map((cell, column) => {
      const width = widths[column]!;
      return numeric.has(column) ? cell.padStart(width) : cell.padEnd(width);
    });
    return `${cells.join('  ').trimEnd()}\n`;
  }).join('');
}
