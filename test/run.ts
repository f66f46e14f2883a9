// `npm test`: the type check, the linter, then every `*.test.ts` under src/ and test/, each file in a process of its
// own, as many at a time as there are processors: those with whole guests first, as they take longest, so that at the end
// no processor waits for another. `npm test -- cpu timers` runs only the test files whose path contains
// one of the words, without the checks. Prints one line per file, whatever a failing file wrote, the slowest files and
// the total time.
//
// Exit status: 0 when everything passed; 1 when a check or a test failed, no file matched, or, where ZAZEN_CI is set, a
// test was skipped (there, every tool that a test needs is to be installed); 2 for an unknown option.

import { spawnSync } from 'node:child_process';
import { globSync, mkdtempSync, rmSync } from 'node:fs';
import { availableParallelism, tmpdir } from 'node:os';
import { join, relative } from 'node:path';
import { run } from 'node:test';
import { inspect } from 'node:util';
import { compileCacheFolder } from '../src/base/cache-folder.ts';
import { FILE_PATIENCE_MILLIS } from './patience.ts';

const ROOT = join(import.meta.dirname, '..');
const SLOWEST_SHOWN = 5;

interface FileReport {
  output: string[];
  failures: string[];
  skipped: string[];
}

interface Totals {
  durations: { file: string; millis: number }[];
  passed: number;
  failed: number;
  skipped: string[];
}

process.exitCode = await main(process.argv.slice(2));

async function main(filters: string[]): Promise<number> {
  const option = filters.find((argument) => argument.startsWith('-'));
  if (option !== undefined) {
    console.error(`npm test: unknown option ${option}; give parts of paths of test files, as in: npm test -- cpu`);
    return 2;
  }
  const started = performance.now();
  const failedChecks = filters.length === 0 ? runChecks() : [];
  const files = findTestFiles(filters);
  if (files.length === 0) {
    console.error(`npm test: no test file's path contains ${filters.join(' or ')}`);
    return 1;
  }
  const totals = await withOwnRegionStore(() => runTests(files));
  return report(totals, failedChecks, performance.now() - started);
}

/** What tests compile is kept for each other, and nothing of it for the next run. */
async function withOwnRegionStore<T>(action: () => Promise<T>): Promise<T> {
  const folder = mkdtempSync(join(tmpdir(), 'zazen-test-regions-'));
  process.env['ZAZEN_REGION_STORE'] = folder;
  try {
    return await action();
  } finally {
    // A process that a test has left behind may be writing still.
    rmSync(folder, { recursive: true, force: true, maxRetries: 10 });
  }
}

/** Names of the checks that failed; their output has been shown. */
function runChecks(): string[] {
  const checks: readonly (readonly [string, readonly string[]])[] = [
    ['tsc', ['--noEmit']],
    ['oxlint', ['--deny-warnings', 'src', 'test', 'bench', 'release']],
  ];
  return checks.flatMap(([tool, args]) => {
    const started = performance.now();
    const result = spawnSync(join(ROOT, 'node_modules', '.bin', tool), args, { cwd: ROOT, encoding: 'utf8' });
    const ok = result.status === 0;
    printLine(ok, performance.now() - started, [tool, ...args].join(' '));
    if (!ok) console.log((result.error?.message ?? '') + result.stdout + result.stderr);
    return ok ? [] : [tool];
  });
}

function findTestFiles(filters: readonly string[]): string[] {
  const files = ['test/guest/**', 'test/**', 'src/**']
    .flatMap((folder) => globSync(`${folder}/*.test.ts`, { cwd: ROOT }).toSorted())
    .filter((file, i, all) => all.indexOf(file) === i);
  if (filters.length === 0) return files;
  return files.filter((file) => filters.some((filter) => file.includes(filter)));
}

async function runTests(files: readonly string[]): Promise<Totals> {
  const reports = new Map<string, FileReport>();
  const reportOf = (file: string | undefined): FileReport => {
    const name = file === undefined ? '' : relative(ROOT, file);
    let entry = reports.get(name);
    if (entry === undefined) reports.set(name, entry = { output: [], failures: [], skipped: [] });
    return entry;
  };
  const totals: Totals = { durations: [], passed: 0, failed: 0, skipped: [] };
  // Two hundred processes strip types from the same files, and compile them: once is enough.
  process.env['NODE_COMPILE_CACHE'] = compileCacheFolder();
  const stream = run({
    files: files.map((file) => join(ROOT, file)),
    cwd: ROOT,
    concurrency: availableParallelism(),
    isolation: 'process',
    // A file that takes longer is stuck: it is ended and reported.
    timeout: FILE_PATIENCE_MILLIS,
  });
  stream.on('test:stdout', (data) => reportOf(data.file).output.push(data.message));
  stream.on('test:stderr', (data) => reportOf(data.file).output.push(data.message));
  stream.on('test:diagnostic', (data) => reportOf(data.file).output.push(`${data.message}\n`));
  stream.on('test:pass', (data) => {
    if (data.skip === undefined && data.todo === undefined) return;
    reportOf(data.file).skipped.push(`${data.name}: ${describeReason(data.skip ?? data.todo)}`);
  });
  stream.on('test:fail', (data) => {
    const { error } = data.details;
    const cause = error.cause instanceof Error ? error.cause : error;
    if ('failureType' in error && error.failureType === 'subtestsFailed') return;
    const place = data.file === undefined ? '' : ` (${relative(ROOT, data.file)}:${data.line ?? 1})`;
    reportOf(data.file).failures.push(`✖ ${data.name}${place}\n${inspect(cause)}`);
  });
  stream.on('test:summary', (data) => {
    if (data.file === undefined) return; // that of the whole run, which repeats the others
    printFile(relative(ROOT, data.file), data.duration_ms, data.success, reportOf(data.file), totals);
    totals.passed += data.counts.passed;
  });
  for await (const event of stream) void event;
  addFilesWithoutSummary(files, reports, totals);
  return totals;
}

/** A file whose process ended before it could say anything, or that never ended, has failed. */
function addFilesWithoutSummary(files: readonly string[], reports: Map<string, FileReport>, totals: Totals): void {
  for (const file of files) {
    if (totals.durations.some((entry) => entry.file === file)) continue;
    printFile(file, 0, false, reports.get(file) ?? { output: [], failures: [], skipped: [] }, totals);
  }
}

function printFile(file: string, millis: number, success: boolean, fileReport: FileReport, totals: Totals): void {
  const ok = success && fileReport.failures.length === 0;
  printLine(ok, millis, file);
  if (!ok) {
    totals.failed += Math.max(1, fileReport.failures.length);
    process.stdout.write(fileReport.output.join(''));
    for (const failure of fileReport.failures) console.log(failure);
    const unexplained = fileReport.failures.length === 0;
    if (unexplained) console.log('the file failed outside its tests, ended early, or has no tests');
  }
  totals.durations.push({ file, millis });
  totals.skipped.push(...fileReport.skipped.map((test) => `${file}: ${test}`));
}

/** Prints the end of the run and says how it went. */
function report(totals: Totals, failedChecks: readonly string[], millis: number): number {
  for (const test of totals.skipped) console.log(`skipped: ${test}`);
  const slowest = totals.durations.toSorted((a, b) => b.millis - a.millis).slice(0, SLOWEST_SHOWN);
  console.log(`\nslowest: ${slowest.map(({ file, millis: took }) => `${file} ${seconds(took)}`).join(', ')}`);
  console.log(`${totals.passed} passed, ${totals.failed} failed, ${totals.skipped.length} skipped, `
    + `${totals.durations.length} files in ${seconds(millis)}`);
  const skippedInCi = process.env['ZAZEN_CI'] !== undefined && totals.skipped.length > 0;
  if (skippedInCi) console.log('a skipped test is a failure here: install what it needs in .ci/run');
  for (const tool of failedChecks) console.log(`${tool} failed, see above`);
  return totals.failed > 0 || failedChecks.length > 0 || skippedInCi ? 1 : 0;
}

function printLine(ok: boolean, millis: number, name: string): void {
  console.log(`${ok ? 'ok  ' : 'FAIL'} ${seconds(millis).padStart(8)}  ${name}`);
}

function describeReason(reason: string | boolean | undefined): string {
  return typeof reason === 'string' && reason !== '' ? reason : 'no reason given';
}

function seconds(millis: number): string {
  return `${(millis / 1000).toFixed(1)} s`;
}
