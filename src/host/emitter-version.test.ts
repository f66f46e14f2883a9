// Everything that decides what the emitter emits is in its version.

import assert from 'node:assert/strict';
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, utimesSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, normalize } from 'node:path';
import { after, test } from 'node:test';
import { DIGEST_FILE, EMITTER_ROOMS, emitterDigest, emitterSources, emitterVersion } from './emitter-version.ts';

const SOURCES = join(import.meta.dirname, '..');
const copy = mkdtempSync(join(tmpdir(), 'zazen-emitter-'));
after(() => rmSync(copy, { recursive: true }));

/** The files that a file needs, itself among them. */
function neededBy(file: string, needed = new Set<string>()): Set<string> {
  if (needed.has(file)) return needed;
  needed.add(file);
  for (const [, path] of readFileSync(join(SOURCES, file), 'utf8').matchAll(/from '(\.[^']+)'/g)) {
    neededBy(normalize(join(dirname(file), path!)), needed);
  }
  return needed;
}

test('all sources of the translator are in it', () => {
  const sources = new Set(emitterSources());
  const needed = [...neededBy('cpu/jit/translator.ts')];
  assert.ok(needed.length > 50);
  assert.deepEqual(needed.filter(file => !sources.has(file)), []);
});

test('it is the same for the same sources, and another one when a byte of one of them or the address type is', () => {
  const longAgo = new Date(Date.now() - 86_400_000);
  for (const room of EMITTER_ROOMS) cpSync(join(SOURCES, room), join(copy, room), { recursive: true });
  for (const file of emitterSources(copy)) utimesSync(join(copy, file), longAgo, longAgo);
  const versions = [emitterVersion('i32', copy), emitterVersion('i64', copy)];
  assert.deepEqual(emitterVersion('i32', copy), versions[0]);
  const file = join(copy, 'a64', 'table.ts');
  writeFileSync(file, `${readFileSync(file, 'utf8')} `);
  // It may be that this process has read the file as it was before.
  assert.equal(emitterVersion('i32', copy), undefined);
  utimesSync(file, longAgo, longAgo);
  versions.push(emitterVersion('i32', copy));
  assert.equal(new Set(versions.map(version => Buffer.from(version!).toString('hex'))).size, 3);
  assert.equal(emitterVersion('i32', join(copy, 'nowhere')), undefined);
});

test('a digest in place of the sources is as good: the same version for the same one, another one for another', () => {
  const longAgo = new Date(Date.now() - 86_400_000);
  const release = join(copy, 'release');
  mkdirSync(release);
  const file = join(release, DIGEST_FILE);
  const versionOf = (digest: string): Uint8Array | undefined => {
    writeFileSync(file, digest);
    utimesSync(file, longAgo, longAgo);
    return emitterVersion('i32', release);
  };
  const digest = emitterDigest();
  assert.match(digest, /^[0-9a-f]{64}$/);
  const version = versionOf(digest);
  assert.deepEqual(versionOf(digest), version);
  assert.notDeepEqual(versionOf(digest.replace(/^./, (digit) => digit === '0' ? '1' : '0')), version);
  assert.notDeepEqual(version, emitterVersion('i32'));
  writeFileSync(file, digest);
  assert.equal(emitterVersion('i32', release), undefined);
});
