// A compiler and a database in a guest, whose results must be those of this machine's own: a C program is compiled and run
// by tcc there and by the C compiler here, and SQLite does the same work on both sides. The guest is profiled meanwhile.
//
//   ZAZEN_SEED=n   another program

import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { before, test } from 'node:test';
import { SeededRandom } from '../../src/base/random.ts';
import { fetchPackages } from '../../src/guest/packages.ts';
import { prepareGuest } from '../../src/guest/initramfs.ts';
import { needsTool } from '../tools.ts';
import type { Profile } from '../../src/host/index.ts';
import { until } from '../waiting.ts';
import { cProgram } from './c-program.ts';
import { FAST_BOOT, runSections, testHost } from './guests.ts';
import type { GuestRun } from './guests.ts';
import { PYTHON, QUERIES, STATEMENTS, resultsHere } from './sql-work.ts';

const SEED = Number(process.env['ZAZEN_SEED'] ?? 11);
/** More than the kernel needs before it has written down where its names are. */
const BOOTED_INSTRUCTIONS = 350e6;
const PACKAGES = ['tcc', 'libc6-dev', 'python3-minimal', 'libpython3-stdlib'];
console.log(`seed ${SEED} (ZAZEN_SEED)`);
const program = cProgram(new SeededRandom(SEED));

/** A shell script that writes a file. */
const file = (name: string, text: string): string => `cat >${name} <<'END OF FILE'\n${text}\nEND OF FILE`;

const SECTIONS = {
  compiler: `exec 2>&1; ${file('p.c', program)}
    tcc -Wall -o p p.c && ./p && tcc -c -o again.o p.c && tcc -c -o once.o p.c && cmp once.o again.o && echo reproducible`,
  database: `exec 2>&1; ${file('work.json', JSON.stringify([STATEMENTS, QUERIES]))}
    ${file('work.py', PYTHON)}
    python3 work.py`,
};

const host = await testHost({ memory: '1GiB' });
let guest: GuestRun;
let profile: Profile;
before(async () => {
  const tree = await fetchPackages(PACKAGES, { withDependencies: true });
  const { initramfsPath } = await prepareGuest({ trees: [tree] });
  const running = runSections(host, { initrd: initramfsPath, cmdline: FAST_BOOT }, SECTIONS);
  await until('the guest is there', () => host.domains().length > 0);
  const [domain] = host.domains();
  const profiling = domain!.profile();
  await until('it has booted', () => domain!.state !== 'running' || domain!.stats().instructionsRetired > BOOTED_INSTRUCTIONS);
  profile = await profiling.stop();
  guest = await running;
});

test('a C program, compiled and run in the guest, says the same as here', t => {
  if (!needsTool(t, 'cc')) return;
  const directory = mkdtempSync(join(tmpdir(), 'zazen-compiler-'));
  try {
    writeFileSync(join(directory, 'p.c'), program);
    // Without contracting multiplications and additions, which tcc does not either.
    const compiled = spawnSync('cc', ['-O1', '-w', '-ffp-contract=off', '-fwrapv', '-o', 'p', 'p.c'], { cwd: directory, encoding: 'utf8' });
    assert.equal(compiled.status, 0, compiled.stderr);
    const { stdout } = spawnSync(join(directory, 'p'), { encoding: 'utf8' });
    assert.ok(stdout.includes('queens 92') && stdout.includes('same') && stdout.includes('jumped 42'), stdout.slice(0, 1000));
    assert.deepEqual(guest.outputOf('compiler').split('\n'), [...stdout.trimEnd().split('\n'), 'reproducible', '']);
  } finally {
    rmSync(directory, { recursive: true });
  }
});

test('SQLite gives the same answers as here', () => {
  assert.deepEqual(guest.outputOf('database').trimEnd().split('\n'), resultsHere());
});

test('the profile of the boot has the names of the kernel, called by each other', () => {
  assert.ok(profile.samples > 100 && profile.cpuMicros > 0, `${profile.samples} samples`);
  const folded = profile.toFolded();
  assert.match(folded, /;ret_from_fork;kernel_init(;\w+)+ \d+\n/);
  const lines = folded.trimEnd().split('\n');
  const nameless = lines.filter(line => /;0x[0-9a-f]+ \d+$/.test(line) && !line.includes('[user]'));
  assert.ok(nameless.length < lines.length / 10, `${nameless.length} of ${lines.length} stacks are nameless`);
});
