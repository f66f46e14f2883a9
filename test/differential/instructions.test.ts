// Every row of the instruction table, in each of its variants, against QEMU: random operands from random states, on
// machines with 32- and 64-bit memory in turn. Environment:
//
//   ZAZEN_SEED=n      other random numbers (every run prints its seed)
//   ZAZEN_CASES=n     cases for each variant (default 6)
//   ZAZEN_ROWS=regex  only rows whose `group: name` matches
//   ZAZEN_UPDATE=1    writes docs/instruction-coverage.md, which is otherwise checked to be current

import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { before, test } from 'node:test';
import type { Row } from '../../src/a64/row.ts';
import { rows } from '../../src/a64/table.ts';
import { SeededRandom } from '../../src/base/random.ts';
import { coveragePage } from './coverage-page.ts';
import { copyState, diffStates } from './cpu-state.ts';
import { existingVariants, randomCase } from './instruction-cases.ts';
import type { InstructionCase } from './instruction-cases.ts';
import { QemuOracle } from './qemu-oracle.ts';
import type { OracleResult } from './qemu-oracle.ts';
import { CODE_ADDRESS, ZazenRunner } from './zazen-runner.ts';

const SEED = Number(process.env['ZAZEN_SEED'] ?? 20_26);
const CASES_PER_VARIANT = Number(process.env['ZAZEN_CASES'] ?? 6);
const SELECTED = new RegExp(process.env['ZAZEN_ROWS'] ?? '');
const COVERAGE_PAGE = join(import.meta.dirname, '../../docs/instruction-coverage.md');
const PAGE_BYTES = 4096n;
/** Failures shown for a group, and differences shown for a failure. */
const FAILURES_SHOWN = 20;
const DIFFERENCES_SHOWN = 5;

console.log(`seed ${SEED} (ZAZEN_SEED sets it), ${CASES_PER_VARIANT} cases for each variant (ZAZEN_CASES)`);

let oracle: QemuOracle;
let runners: readonly ZazenRunner[];
before(async () => {
  oracle = await QemuOracle.start();
  runners = [new ZazenRunner('i32'), new ZazenRunner('i64')];
});

const compared = rows.filter(row => row.undifferentiable === undefined && SELECTED.test(`${row.group}: ${row.name}`));
for (const [group, members] of Map.groupBy(compared, row => row.group)) {
  test(`${group}: ${members.length} rows agree with QEMU`, async () => {
    const random = new SeededRandom(SEED);
    const cases = members.flatMap(row => casesOf(row, random));
    const results = await oracle.run(cases);
    const failures = cases.flatMap((testCase, i) => {
      const differences = compare(testCase, results[i]!, runners[i % runners.length]!);
      return differences.length === 0 ? [] : [describe(testCase, differences)];
    });
    assertNone(failures, cases.length);
  });
}

function casesOf(row: Row, random: SeededRandom): InstructionCase[] {
  const cases = existingVariants(row)
    .flatMap(statics => Array.from({ length: CASES_PER_VARIANT }, () => randomCase(row, statics, random)))
    .filter(testCase => testCase !== undefined);
  assert.ok(cases.length > 0, `no case could be made for ${row.name}`);
  return cases;
}

function compare(testCase: InstructionCase, expected: OracleResult, runner: ZazenRunner): string[] {
  const actual = runner.run(testCase.words, testCase.state, expected.codeAddress);
  if (expected.fault !== undefined) return [`QEMU ends it with ${expected.fault.signal}`];
  if (actual.fault !== undefined) return [`Zazen ends it with ESR_EL1 0x${actual.fault.esr.toString(16)}`];
  return diffStates(expected.state, actual.state);
}

function assertNone(failures: readonly string[], cases: number): void {
  const shown = failures.slice(0, FAILURES_SHOWN);
  assert.ok(failures.length === 0, [`seed ${SEED}: ${failures.length} of ${cases} cases differ`, ...shown].join('\n'));
}

function describe({ row, word, words }: InstructionCase, differences: readonly string[]): string {
  const hex = (value: number) => value.toString(16).padStart(8, '0');
  const more = differences.length > DIFFERENCES_SHOWN ? [`and ${differences.length - DIFFERENCES_SHOWN} more`] : [];
  const code = words.length > 1 ? ` in ${words.map(hex).join(' ')}` : '';
  return [`${row.name} (${hex(word)}${code}):`, ...differences.slice(0, DIFFERENCES_SHOWN), ...more].join('\n    ');
}

// A branch to another page has a handler of its own; the oracle's code never lies across a page boundary, Zazen's here.
test('branches across a page boundary agree with QEMU', async () => {
  const random = new SeededRandom(SEED);
  const cases = compared.filter(row => row.branch !== undefined).flatMap(row => casesOf(row, random));
  const results = await oracle.run(cases);
  const failures = cases.flatMap((testCase, i) => {
    const expected = copyState(results[i]!.state);
    const codeAddress = CODE_ADDRESS + PAGE_BYTES * BigInt(1 + random.below(16)) - 4n * BigInt(1 + random.below(7));
    if (testCase.row.name === 'BL') expected.x[30] = expected.x[30]! + codeAddress - results[i]!.codeAddress;
    const differences = compare(testCase, { codeAddress, state: expected }, runners[i % runners.length]!);
    return differences.length === 0 ? [] : [describe(testCase, differences)];
  });
  assertNone(failures, cases.length);
});

test('rows that are left out say why', () => {
  for (const row of rows) assert.notEqual(row.undifferentiable, '', row.name);
});

test('the coverage page is current', async () => {
  const page = coveragePage();
  if (process.env['ZAZEN_UPDATE'] === '1') await writeFile(COVERAGE_PAGE, page);
  const found = await readFile(COVERAGE_PAGE, 'utf8').catch(() => '');
  assert.ok(found === page, 'docs/instruction-coverage.md is not what the table says; ZAZEN_UPDATE=1 writes it');
});
