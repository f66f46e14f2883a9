// Results of benchmarks as tables for people.

import { formatColumns, formatTable } from '../src/cli/table.ts';
import type { GoalReport } from './goals.ts';
import { round } from './statistics.ts';
import type { Summary } from './statistics.ts';

const isSummary = (value: object): value is Summary =>
  ['samples', 'median', 'p99', 'max'].every(name => name in value);

/** Every number and text in a result, by the names that lead to it; samples as one line. */
export function formatResult(result: unknown): string {
  const summaries: [string, ...string[]][] = [];
  const others: [string, string][] = [];
  const visit = (path: string, value: unknown): void => {
    if (typeof value === 'number') others.push([path, String(round(value))]);
    else if (typeof value !== 'object' || value === null) {
      if (value !== undefined) others.push([path, String(value)]);
    } else if (isSummary(value)) {
      summaries.push([path, ...[value.median, value.p99, value.max, value.samples].map(one => String(round(one)))]);
    } else for (const [name, inner] of Object.entries(value)) visit(path === '' ? name : `${path}.${name}`, inner);
  };
  visit('', result);
  const table = summaries.length === 0 ? ''
    : formatColumns(['', 'median', 'p99', 'max', 'samples'], summaries, new Set([1, 2, 3, 4]));
  return `${table}${formatTable(others)}`;
}

export function formatGoals(reports: readonly GoalReport[]): string {
  const rows = reports.map(({ what, unit, goal, measured, reached }) => [
    what, goal, measured === undefined ? '-' : String(measured), unit,
    reached === undefined ? 'not measured' : reached ? 'reached' : 'missed',
  ]);
  return formatColumns(['', 'goal', 'measured', '', ''], rows, new Set([1, 2]));
}
