// The chain of trust, over an archive made here: its own key, a signed release, one package; served on a local port.

import { test } from 'node:test';
import type { TestContext } from 'node:test';
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { needsTool } from '../../test/tools.ts';
import { fetchPackages } from './packages.ts';
import { checkRelease, releaseEntry } from './mirror-source.ts';

const sha256 = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex');

function run(tool: string, args: string[], cwd: string, input = ''): Buffer {
  const { status, stdout, stderr } = spawnSync(tool, args, { cwd, input });
  assert.equal(status, 0, `${tool}: ${stderr}`);
  return stdout;
}

interface TestArchive {
  /** Files by path below the root, to be changed by a test. */
  files: Map<string, Buffer>;
  requests: string[];
  fetchHello(): Promise<string>;
}

/** An archive with one package, `hello`, that holds /etc/hello. */
async function withArchive(t: TestContext, work: (archive: TestArchive) => Promise<void>): Promise<void> {
  for (const tool of ['gpg', 'gpgv', 'xz', 'dpkg-deb']) if (!needsTool(t, tool)) return;
  const dir = mkdtempSync(join(tmpdir(), 'zazen-archive-'));
  const files = new Map<string, Buffer>();
  const requests: string[] = [];
  const server = createServer((request, response) => {
    requests.push(request.url!);
    const body = files.get(request.url!.slice('/debian/'.length));
    response.writeHead(body ? 200 : 404).end(body);
  });
  const saved = { ...process.env };
  try {
    mkdirSync(join(dir, 'gnupg'), { mode: 0o700 });
    mkdirSync(join(dir, 'package/DEBIAN'), { recursive: true });
    mkdirSync(join(dir, 'package/etc'));
    writeFileSync(join(dir, 'package/etc/hello'), 'hello\n');
    const names = 'Package: hello\nVersion: 1.0\nArchitecture: arm64\n';
    const control = `${names}Maintainer: n <n@example.org>\nDescription: x\n`;
    writeFileSync(join(dir, 'package/DEBIAN/control'), control);
    run('dpkg-deb', ['--root-owner-group', '-Zxz', '-b', 'package', 'hello.deb'], dir);
    const deb = readFileSync(join(dir, 'hello.deb'));
    const stanza = `${control}Filename: pool/hello_1.0_arm64.deb\nSize: ${deb.length}\nSHA256: ${sha256(deb)}\n`;
    const packages = run('xz', ['-c'], dir, stanza);
    const list = `SHA256:\n ${sha256(packages)} ${packages.length} main/binary-arm64/Packages.xz\n`;
    const release = `Origin: Test\nSuite: stable\nCodename: bookworm\n${list}`;
    const gpg = ['--homedir', join(dir, 'gnupg'), '--batch', '--pinentry-mode', 'loopback', '--passphrase', ''];
    run('gpg', [...gpg, '--quick-generate-key', 'test@example.org', 'ed25519', 'sign'], dir);
    writeFileSync(join(dir, 'keyring.gpg'), run('gpg', [...gpg, '--export'], dir));
    files.set('dists/bookworm/InRelease', run('gpg', [...gpg, '--clearsign'], dir, release));
    files.set('dists/bookworm/main/binary-arm64/Packages.xz', packages);
    files.set('pool/hello_1.0_arm64.deb', deb);
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    process.env['ZAZEN_DEBIAN_MIRROR'] = `http://127.0.0.1:${(server.address() as AddressInfo).port}/debian/`;
    process.env['ZAZEN_DEBIAN_KEYRING'] = join(dir, 'keyring.gpg');
    delete process.env['ZAZEN_DEBIAN_SUITE'];
    await work({ files, requests, fetchHello: () => fetchPackages(['hello'], { cacheDir: join(dir, 'cache') }) });
  } finally {
    process.env = saved;
    server.close();
    server.closeAllConnections();
    spawnSync('gpgconf', ['--homedir', join(dir, 'gnupg'), '--kill', 'all']);
    // Its agent may still be removing sockets.
    rmSync(dir, { recursive: true, force: true, maxRetries: 10 });
  }
}

test('a package comes through the chain, and from the cache the second time', async (t) => {
  await withArchive(t, async ({ requests, fetchHello }) => {
    const tree = await fetchHello();
    assert.equal(readFileSync(join(tree, 'etc/hello'), 'utf8'), 'hello\n');
    assert.equal(requests.length, 3);
    assert.equal(await fetchHello(), tree);
    assert.equal(requests.length, 3);
  });
});

test('each altered link of the chain is refused, and leaves nothing in the cache', async (t) => {
  await withArchive(t, async ({ files, fetchHello }) => {
    const cases: [path: string, code: string][] = [
      ['dists/bookworm/InRelease', 'ZAZEN_GUEST_SIGNATURE'],
      ['dists/bookworm/main/binary-arm64/Packages.xz', 'ZAZEN_GUEST_DIGEST'],
      ['pool/hello_1.0_arm64.deb', 'ZAZEN_GUEST_DIGEST'],
    ];
    for (const [path, code] of cases) {
      const good = files.get(path)!;
      const altered = Buffer.from(good);
      // In the release, a byte of the signed text: its first field.
      altered[path.endsWith('InRelease') ? good.indexOf('Origin') : good.length >> 1]! ^= 1;
      files.set(path, altered);
      await assert.rejects(fetchHello(), { code });
      files.set(path, Buffer.concat([good, Buffer.alloc(1 << 23)]));
      await assert.rejects(fetchHello(), { code: 'ZAZEN_GUEST_DOWNLOAD' });
      files.delete(path);
      await assert.rejects(fetchHello(), { code: 'ZAZEN_GUEST_DOWNLOAD', message: /answers 404/ });
      files.set(path, good);
    }
    assert(existsSync(await fetchHello()));
  });
});

test('a release signed by another key is refused', async (t) => {
  await withArchive(t, async ({ fetchHello }) => {
    writeFileSync(process.env['ZAZEN_DEBIAN_KEYRING']!, '');
    await assert.rejects(fetchHello(), { code: 'ZAZEN_GUEST_SIGNATURE' });
    process.env['ZAZEN_DEBIAN_KEYRING'] = '/nonexistent/keyring.gpg';
    await assert.rejects(fetchHello(), { code: 'ZAZEN_GUEST_KEYRING' });
  });
});

test('what a release says of itself', () => {
  const release = `Suite: oldstable\nCodename: bookworm\nValid-Until: Sat, 01 Jan 2022 00:00:00 UTC
SHA1:
 ${'1'.repeat(40)} 5 main/x
SHA256:
 ${'a'.repeat(64)}     77 main/x
 ${'b'.repeat(64)} 8 main/y
`;
  const before = Date.UTC(2021, 0);
  checkRelease(release, 'bookworm', before);
  checkRelease(release, 'oldstable', before);
  assert.throws(() => checkRelease(release, 'trixie', before), { code: 'ZAZEN_GUEST_RELEASE' });
  assert.throws(() => checkRelease(release, 'bookworm', Date.UTC(2023, 0)), { message: /valid until/ });
  assert.deepEqual(releaseEntry(release, 'main/x'), { sha256: 'a'.repeat(64), sizeBytes: 77 });
  assert.throws(() => releaseEntry(release, 'main/z'), { code: 'ZAZEN_GUEST_RELEASE' });
});
