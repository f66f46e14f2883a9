import { test } from 'node:test';
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import fc from 'fast-check';
import { needsTool } from '../../test/tools.ts';
import { PackageIndex, compareDebianVersions } from './package-index.ts';

test('versions in the order of Debian policy', () => {
  const ascending = [
    '0~~', '0~~a', '0~', '0', '0a', '0.1', '1.0~rc1-1', '1.0-1', '1.0-1+b1', '1.0-1.1', '1.0-10', '1.0+x-1', '1.a',
    '10.0', '1:0.1',
  ];
  ascending.forEach((a, i) =>
    ascending.forEach((b, j) => {
      assert.equal(Math.sign(compareDebianVersions(a, b)), Math.sign(i - j), `${a} and ${b}`);
    }),
  );
});

test('versions compare as dpkg compares them', (t) => {
  if (!needsTool(t, 'dpkg')) return;
  const part = fc.stringMatching(/^[0-9][0-9a-z.+~]{0,6}$/);
  const revision = fc.constantFrom('', '-0', '-1~a', '-1+b2', '-2');
  const version = fc.tuple(fc.constantFrom('', '1:'), part, revision).map((parts) => parts.join(''));
  fc.assert(
    fc.property(version, version, (a, b) => {
      const relation = ['lt', 'eq', 'gt'][Math.sign(compareDebianVersions(a, b)) + 1]!;
      assert.equal(spawnSync('dpkg', ['--compare-versions', a, relation, b]).status, 0, `${a} ${relation} ${b}`);
    }),
    { numRuns: 100 },
  );
});

const packages = `Package: app
Version: 1.0-1
Architecture: arm64
Depends: libnew (>= 2) | libold, virtual, helper:any
Filename: pool/app.deb
Size: 10
SHA256: ${'ab'.repeat(32)}

Package: app
Version: 1.0-2
Architecture: arm64
Pre-Depends: libc
Depends: libnew (>= 2) | libold, virtual, helper:any
Filename: pool/app2.deb
Size: 11
SHA256: ${'cd'.repeat(32)}

Package: libnew
Version: 1.9
Depends: libc (>= 1~)

Package: libold
Version: 3
Depends: libc, app

Package: libc
Version: 2

Package: helper
Version: 1

Package: real
Version: 1
Provides: other, virtual (= 5)

Package: zeal
Version: 1
Priority: required
Provides: virtual

Package: broken
Version: 1
Depends: gone | libc (>> 2)
`;

test('the newest version is taken, with what it depends on before it', () => {
  const index = new PackageIndex();
  index.add(packages);
  assert.deepEqual(index.resolve(['app'], false).map(({ version }) => version), ['1.0-2']);
  assert.deepEqual(index.resolve(['app'], true).map(({ name }) => name), ['libc', 'libold', 'real', 'helper', 'app']);
  const names = index.resolve(['app', 'zeal'], true).map(({ name }) => name);
  assert.deepEqual(names, ['libc', 'libold', 'zeal', 'helper', 'app'], 'what is wanted anyway is chosen among providers');
  assert.deepEqual(index.required(), ['zeal']);
  assert.equal(index.find('app')!.filename, 'pool/app2.deb');
  assert.equal(index.find('app')!.sizeBytes, 11);
});

test('what the archive does not have is an error', () => {
  const index = new PackageIndex();
  index.add(packages);
  assert.throws(() => index.resolve(['nothing'], false), { code: 'ZAZEN_GUEST_PACKAGE_UNKNOWN' });
  assert.throws(() => index.resolve(['broken'], true), { message: /broken needs gone or libc/ });
});
