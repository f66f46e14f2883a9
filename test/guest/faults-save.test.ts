// A whole host dies while it saves, again and again: the file under the image's name is whole at any time, and what
// dead processes leave is cleared away by the next save. Then saves for which there is no room: refused, nothing left,
// and the guest works on.
//
// ZAZEN_STRESS_KILLS: how many hosts are killed (default 8).

import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { after, test } from 'node:test';
import { SeededRandom } from '../../src/base/random.ts';
import { openImage } from '../../src/image/image.ts';
import { bareMetalImage } from '../bare-metal.ts';
import { keeper } from '../keeper.ts';
import { KEPT_PAGES } from './faults-save-child.ts';
import { collect } from './guests.ts';

const KILLS = Number(process.env['ZAZEN_STRESS_KILLS'] ?? 8);
const seed = Number(process.env['ZAZEN_TEST_SEED'] ?? Date.now() % 2 ** 31);
const CHILD = join(import.meta.dirname, 'faults-save-child.ts');
/** A save takes some tens of milliseconds, or more on a machine that is busy. */
const DELAY_MILLIS_MAX = 120;

const folder = mkdtempSync(join(tmpdir(), 'zazen-faults-save-'));
after(() => rmSync(folder, { recursive: true }));
const kernel = join(folder, 'kernel');
writeFileSync(kernel, bareMetalImage({ code: keeper(KEPT_PAGES) }));
const images = join(folder, 'images');
mkdirSync(images);
const path = join(images, 'guest.core');

/** Left by processes that are dead. */
function leftovers(): string[] {
  return readdirSync(images).filter(name => name !== basename(path));
}

async function assertWhole(): Promise<void> {
  const image = await openImage(path);
  try {
    assert.deepEqual((await image.verify()).problems, []);
  } finally {
    await image.close();
  }
}

interface Outcome {
  readonly saves: number;
  readonly leftovers: number;
}

/** A host that saves so many times, is killed a while later, and must leave what can be used. */
async function killOne(saves: number, delayMillis: number): Promise<Outcome> {
  const child = spawn(process.execPath, [CHILD, 'forever', path, kernel], { stdio: ['ignore', 'pipe', 'pipe'] });
  const [output, errors] = [collect(child.stdout), collect(child.stderr)];
  const ended = new Promise<string | null>(resolve => child.on('close', (_code, signal) => resolve(signal)));
  try {
    await output.until(new RegExp(`ready\n(saved\n){${saves}}`));
    await new Promise(resolve => { setTimeout(resolve, delayMillis); });
    // Whatever the dead have left is gone by then.
    const old = leftovers().filter(name => !name.includes(`-${child.pid}-`));
    if (saves > 0) assert.deepEqual(old, []);
  } finally {
    child.kill('SIGKILL');
  }
  assert.equal(await ended, 'SIGKILL', `it ended before it was killed: ${errors.text()}`);
  if (existsSync(path) || saves > 0) await assertWhole();
  return { saves: output.text().split('saved').length - 1, leftovers: leftovers().length };
}

test(`a host that dies while it saves leaves no half image (seed ${seed})`, async t => {
  const random = new SeededRandom(seed);
  const outcomes: Outcome[] = [];
  const sum = (of: keyof Outcome) => outcomes.reduce((total, outcome) => total + outcome[of], 0);
  // Most are killed in the middle of a save; that all are between two is not impossible.
  for (let i = 0; i < KILLS || sum('leftovers') === 0 && i < 10 * KILLS; i++) {
    outcomes.push(await killOne(i % 3, random.below(DELAY_MILLIS_MAX)));
  }
  t.diagnostic(`${outcomes.length} killed, ${sum('saves')} saves completed, ${sum('leftovers')} torn files left`);
  assert.ok(sum('leftovers') > 0, 'none was killed in the middle of a save');
});

/** A save of a host with a limit on its files fails as it should. */
function refusedFor(launcher: readonly [string, ...string[]], target: string): void {
  const [command, ...args] = launcher;
  const child = [process.execPath, CHILD, 'once', target, kernel];
  const { stdout, stderr } = spawnSync(command, [...args, ...child], { encoding: 'utf8' });
  assert.equal(stdout, 'error ZAZEN_IMAGE_NO_SPACE\nlives\n', stderr);
}

test('a save for which there is no room is refused, and the guest works on', async t => {
  const fresh = join(images, 'refused.core');
  // Too little for the guest's memory; just too little for what comes after it.
  for (const limitBytes of [2 ** 20, 64 * 2 ** 20 + 8192]) {
    refusedFor(['sh', '-c', `ulimit -f ${limitBytes / 512}; exec "$@"`, 'sh'], fresh);
    assert.ok(!existsSync(fresh));
  }
  // A disk that is full, where a process may have one of its own.
  const mount = `mount -t tmpfs -o size=12m none '${images}' && exec "$@"`;
  const disk = ['unshare', '--user', '--map-root-user', '--mount', 'sh', '-c', mount, 'sh'] as const;
  const isAllowed = spawnSync(disk[0], [...disk.slice(1), 'true']).status === 0;
  if (isAllowed) refusedFor(disk, fresh);
  else t.diagnostic('no file system of its own to fill: unshare is not allowed here');
});

test('the image that was there before is what it was', async () => {
  const earlier = statSync(path).mtimeMs;
  refusedFor(['sh', '-c', `ulimit -f ${2 ** 20 / 512}; exec "$@"`, 'sh'], path);
  assert.equal(statSync(path).mtimeMs, earlier);
  await assertWhole();
});
