// The page docs/instruction-coverage.md: every row of the instruction table, and what its meaning is tested against.

import type { Row } from '../../src/a64/row.ts';
import { rows } from '../../src/a64/table.ts';
import { existingVariants } from './instruction-cases.ts';

const HEAD = `# Instruction coverage

Generated from the instruction table by \`test/differential/instructions.test.ts\`; \`ZAZEN_UPDATE=1 npm test\` writes
it anew. *Variants* counts the combinations of fields that an instruction's meaning is specialised for; each is a handler
of the interpreter and is tested by itself. *QEMU* means: random operands and states with edge values, run on Zazen's
interpreter and on \`qemu-aarch64\`, and the whole state compared (general and vector registers, flags, FPCR, FPSR,
memory). Where a row is not tested that way, the reason stands there.
`;

export function coveragePage(): string {
  const groups = Map.groupBy(rows, row => row.group);
  const sections: string[] = [];
  const totals: string[] = [];
  for (const [name, members] of groups) {
    const counts = members.map(row => existingVariants(row).length);
    const compared = members.filter(row => row.undifferentiable === undefined).length;
    totals.push(`| [${name}](#${name}) | ${members.length} | ${sum(counts)} | ${compared} |`);
    sections.push([
      `## ${name}`, '', '| instruction | encoding | variants | tested against |', '|---|---|---|---|',
      ...members.map((row, i) => line(row, counts[i]!)), '',
    ].join('\n'));
  }
  const summary = ['| group | rows | variants | rows tested against QEMU |', '|---|---|---|---|', ...totals, ''];
  return [HEAD, ...summary, ...sections].join('\n');
}

function line(row: Row, variants: number): string {
  return `| ${row.name} | \`${row.pattern}\` | ${variants} | ${row.undifferentiable ?? 'QEMU'} |`;
}

const sum = (values: readonly number[]): number => values.reduce((total, value) => total + value, 0);
