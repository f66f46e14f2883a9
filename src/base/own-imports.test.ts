import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { pathToFileURL } from 'node:url';
import { importOwnQuickly } from './own-imports.ts';

test('quickly or not, an import gives the same module, and everything else is found as ever', async (t) => {
  const before = await import('./errors.ts');
  importOwnQuickly();
  assert.equal(await import('./errors.ts'), before);
  assert.equal((await import('../host/size.ts')).parseSize('1MiB'), 2 ** 20);
  assert.equal((await import('../cpu/jit/register-set.ts')), await import(new URL('../cpu/jit/register-set.ts', import.meta.url).href));
  await assert.rejects(import(`./${'no-such-file'}.ts`), { code: 'ENOENT' });
  assert.equal(typeof (await import('fast-check')).assert, 'function');
  const folder = mkdtempSync(join(tmpdir(), 'zazen-imports-'));
  t.after(() => rmSync(folder, { recursive: true }));
  writeFileSync(join(folder, 'package.json'), '{ "type": "module" }');
  writeFileSync(join(folder, 'one.ts'), 'export { two } from \'./two.ts\';');
  writeFileSync(join(folder, 'two.ts'), 'export const two: number = 2;');
  assert.equal((await import(pathToFileURL(join(folder, 'one.ts')).href)).two, 2);
});
