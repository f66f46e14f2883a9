import { test } from 'node:test';
import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { hostname, tmpdir } from 'node:os';
import { join } from 'node:path';
import { Cache } from './cache.ts';

async function withCacheDir(work: (dir: string) => Promise<void>): Promise<void> {
  const dir = mkdtempSync(join(tmpdir(), 'zazen-cache-'));
  try {
    await work(dir);
  } finally {
    rmSync(dir, { recursive: true });
  }
}

/** A process that runs `body` with `cache` (of `dir`) and `say(word)`; gives it and a promise of each word. */
function child(dir: string, body: string): { process: ChildProcess; word: () => Promise<string> } {
  const source = `
    import { appendFileSync, writeFileSync } from 'node:fs';
    import { Cache } from ${JSON.stringify(new URL('./cache.ts', import.meta.url).href)};
    const dir = ${JSON.stringify(dir)};
    const cache = new Cache(dir);
    const say = (word) => process.stdout.write(word + '\\n');
    ${body}`;
  const args = ['--input-type=module', '-e', source];
  const running = spawn(process.execPath, args, { stdio: ['pipe', 'pipe', 'inherit'] });
  const words: string[] = [];
  let rest = '';
  running.stdout!.setEncoding('utf8').on('data', (text: string) => {
    const lines = (rest + text).split('\n');
    rest = lines.pop()!;
    words.push(...lines);
    running.emit('word');
  });
  const word = async (): Promise<string> => {
    while (words.length === 0) await once(running, 'word');
    return words.shift()!;
  };
  return { process: running, word };
}

test('a directory is filled once, and not at all when filling fails', async () => {
  await withCacheDir(async (dir) => {
    const cache = new Cache(dir);
    const failing = cache.directory('things/one', async (into) => {
      writeFileSync(join(into, 'half'), 'x');
      throw new Error('no');
    });
    await assert.rejects(failing, /no/);
    assert(!existsSync(join(dir, 'things/one')));
    assert.deepEqual(readdirSync(join(dir, 'tmp')), []);
    assert.deepEqual(readdirSync(join(dir, 'locks')), []);
    let fills = 0;
    for (let i = 0; i < 2; i++) {
      const path = await cache.directory('things/one', async (into) => {
        fills++;
        writeFileSync(join(into, 'whole'), 'x');
      });
      assert.deepEqual(readdirSync(path), ['whole']);
    }
    assert.equal(fills, 1);
    const replaced = await cache.directory('things/one', async (into) => writeFileSync(join(into, 'newer'), 'x'), true);
    assert.deepEqual(readdirSync(replaced), ['newer']);
    assert.deepEqual(readdirSync(join(dir, 'tmp')), []);
  });
});

test('two processes that want the same directory fill it once', async () => {
  await withCacheDir(async (dir) => {
    const body = `
      await cache.directory('d', async (into) => {
        appendFileSync(dir + '/fills', 'x');
        writeFileSync(into + '/f', 'content');
      });
      say('done');`;
    const children = [child(dir, body), child(dir, body), child(dir, body)];
    for (const { word } of children) assert.equal(await word(), 'done');
    assert.equal(readFileSync(join(dir, 'fills'), 'utf8'), 'x');
    assert.equal(readFileSync(join(dir, 'd/f'), 'utf8'), 'content');
  });
});

test('a killed process leaves nothing under the name, and its lock and work are cleared away', async () => {
  await withCacheDir(async (dir) => {
    const killed = child(dir, `
      await cache.directory('d', async (into) => {
        writeFileSync(into + '/half', '');
        say('filling');
        await new Promise((resolve) => process.stdin.on('data', resolve));
      });`);
    assert.equal(await killed.word(), 'filling');
    assert.equal(readdirSync(join(dir, 'tmp')).length, 1);
    killed.process.kill('SIGKILL');
    await once(killed.process, 'close');
    assert(!existsSync(join(dir, 'd')));
    await new Cache(dir).directory('d', async (into) => writeFileSync(join(into, 'whole'), ''));
    assert.deepEqual(readdirSync(join(dir, 'd')), ['whole']);
    assert.deepEqual(readdirSync(join(dir, 'tmp')), []);
    assert.deepEqual(readdirSync(join(dir, 'locks')), []);
  });
});

test('a living holder is waited for, and waiting can be given up', async () => {
  await withCacheDir(async (dir) => {
    const holder = child(dir, `
      await cache.withLock('l', async () => {
        say('held');
        await new Promise((resolve) => process.stdin.on('data', resolve));
        appendFileSync(dir + '/order', 'holder ');
      });
      process.exit();`);
    assert.equal(await holder.word(), 'held');
    const abort = new AbortController();
    const lines: string[] = [];
    const impatient = new Cache(dir, (line) => {
      lines.push(line);
      abort.abort();
    }, abort.signal);
    await assert.rejects(impatient.withLock('l', async () => assert.fail('the lock is held')), { name: 'AbortError' });
    assert.match(lines[0]!, /waiting for another zazen/);
    const patient = new Cache(dir, () => holder.process.stdin!.write('go\n'));
    await patient.withLock('l', async () => assert.equal(readFileSync(join(dir, 'order'), 'utf8'), 'holder '));
  });
});

test('a lock whose process number was given to another process is stale', async () => {
  await withCacheDir(async (dir) => {
    mkdirSync(join(dir, 'locks'));
    writeFileSync(join(dir, 'locks/l'), `${hostname().replaceAll(/[^A-Za-z0-9-]/g, '_')},${process.pid},1\n`);
    assert.equal(await new Cache(dir).withLock('l', async () => 7), 7);
  });
});

test('a cache that cannot be written is an error that says so', async () => {
  await withCacheDir(async (dir) => {
    writeFileSync(join(dir, 'file'), '');
    const cache = new Cache(join(dir, 'file'));
    await assert.rejects(cache.directory('d', async () => {}), { code: 'ZAZEN_CACHE' });
  });
});

test('a lock that cannot be written is an error of the cache', async () => {
  await withCacheDir(async (dir) => {
    const locked = new Cache(dir).withLock('long'.repeat(100), async () => assert.fail('it was not locked'));
    await assert.rejects(locked, { code: 'ZAZEN_CACHE', message: /^cannot write the cache .*: ENAMETOOLONG/ });
  });
});

test('a disk without room is told of before anything is fetched', async (t) => {
  await withCacheDir(async (dir) => {
    const cache = new Cache(dir);
    await cache.requireRoom(1);
    await assert.rejects(cache.requireRoom(2 ** 60), { code: 'ZAZEN_CACHE', message: /^cannot write the cache .*: there is room for \d+ MiB, and this takes 1099511627776 MiB$/ });
    const unshare = ['--user', '--map-root-user', '--mount'];
    if (spawnSync('unshare', [...unshare, 'true']).status !== 0) return t.skip('needs namespaces of its own for a small disk');
    // At that port nobody is asked for packages.
    const env = { ...process.env, ZAZEN_CACHE_DIR: join(dir, 'small'), ZAZEN_DEBIAN_MIRROR: 'http://127.0.0.1:9/debian' };
    mkdirSync(env.ZAZEN_CACHE_DIR);
    const script = 'mount -t tmpfs -o size=8m none "$ZAZEN_CACHE_DIR" && exec "$@"';
    const program = [process.execPath, join(import.meta.dirname, '../cli/main.ts'), 'guest', 'fetch'];
    const { status, stderr } = spawnSync('unshare', [...unshare, 'sh', '-c', script, 'sh', ...program], { env, encoding: 'utf8' });
    assert.match(stderr, /^zazen: cannot write the cache .*small: there is room for \d MiB, and this takes 64 MiB; set ZAZEN_CACHE_DIR to /m);
    assert.equal(status, 1);
  });
});
