import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { pathToFileURL } from 'node:url';
import { withSourcePositions } from './source-positions.ts';

test('a place with a map is one in the sources, any other stays as it is', (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'zazen-maps-'));
  t.after(() => rmSync(folder, { recursive: true }));
  // Of the second line from its fifth column on: the third line of the source, second column.
  const map = { version: 3, sources: ['../src/a b.ts'], names: [], mappings: ';IAEC' };
  writeFileSync(join(folder, 'mapped.js.map'), JSON.stringify(map));
  writeFileSync(join(folder, 'broken.js.map'), '{"version": 3');
  const url = (file: string): string => pathToFileURL(join(folder, file)).href;
  const source = new URL('../src/a%20b.ts', url('x')).href;
  const text = `TypeError: oops\n    at f (${url('mapped.js')}:2:9)\n    at ${url('mapped.js')}:2:9\n`;
  const unknown = `    at g (${url('broken.js')}:2:9)\n    at h (${url('none.js')}:1:1)\n    at node:fs:12:3\n    at ${url('mapped.js')}:1:1\n`;
  assert.equal(withSourcePositions(text + unknown),
    `TypeError: oops\n    at f (${source}:3:2)\n    at ${source}:3:2\n${unknown}`);
});
