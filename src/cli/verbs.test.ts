// The table of verbs tells the truth about each file, and a verb that only speaks to a host loads nothing of the machine.

import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { test } from 'node:test';
import { VERB_FILES, allVerbs, findVerb } from './verbs.ts';

test('the words of each file are the first ones of its verbs', async () => {
  for (const { words, load } of VERB_FILES) {
    const first = (await load()).map((verb) => verb.name.split(' ')[0]!);
    assert.deepEqual([...words].toSorted(), [...new Set(first)].toSorted());
  }
});

test('every verb is found by its own words, and leaves the others', async () => {
  const verbs = await allVerbs();
  assert.equal(new Set(verbs.map((verb) => verb.name)).size, verbs.length);
  for (const verb of verbs) {
    assert.deepEqual(await findVerb([...verb.name.split(' '), 'a', '--b']), { verb, rest: ['a', '--b'] });
  }
});

/** Rooms of whose files one command line loads some. */
function roomsLoadedBy(...words: string[]): string[] {
  const hook = `import { registerHooks } from 'node:module';
    registerHooks({ load(url, context, next) { process.stderr.write(url + '\\n'); return next(url, context); } });`;
  const program = join(import.meta.dirname, 'main.ts');
  const { stderr } = spawnSync(process.execPath, ['--import', `data:text/javascript,${encodeURIComponent(hook)}`, program, ...words],
    { encoding: 'utf8' });
  return [...new Set([...stderr.matchAll(/\/src\/(\w+)\//g)].map((match) => match[1]!))].toSorted();
}

test('verbs that only speak to a host load nothing of the machine', () => {
  for (const words of [['list'], ['pause', 'nobody'], ['fork', 'nobody', 'x'], ['network-list', 'nobody'], ['--version']]) {
    assert.deepEqual(roomsLoadedBy(...words).filter((room) => !['base', 'cli', 'daemon', 'host', 'network'].includes(room)), []);
  }
  assert.ok(roomsLoadedBy('image', 'info', 'nowhere').includes('image'));
});
