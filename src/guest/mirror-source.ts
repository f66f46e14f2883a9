// Debian packages straight from a mirror, for hosts without apt, along the archive's chain of trust:
//
//   keyring --signs--> InRelease --SHA256--> Packages.xz --SHA256--> .deb
//
// The signature is checked by gpgv with Debian's keyring; without either, nothing is fetched. The mirror comes from
// ZAZEN_DEBIAN_MIRROR (`http://HOST/debian`), the release from ZAZEN_DEBIAN_SUITE (bookworm if unset), the keyring from
// ZAZEN_DEBIAN_KEYRING or where Debian's and Fedora's packages put it. Security updates, which have an archive of their
// own, come with the release's next point update.

import { createHash } from 'node:crypto';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { ZazenError } from '../base/errors.ts';
import { exists } from './cache.ts';
import { decompress } from './decompress.ts';
import { PackageIndex } from './package-index.ts';
import type { PackageSource } from './package-source.ts';
import { hasTool, runTool } from './run-tool.ts';

const keyrings = [
  '/usr/share/keyrings/debian-archive-keyring.gpg',
  '/usr/share/keyrings/debian-archive-keyring.pgp',
  '/usr/share/debian-keyring/keyrings/debian-archive-keyring.gpg',
];
const installHint =
  "install gpgv and Debian's archive keyring (packages gpgv or gnupg, and debian-archive-keyring or debian-keyring), " +
  'or give --kernel and --initrd';

export function mirrorSource(mirror: string, architecture: string, signal?: AbortSignal): PackageSource {
  const root = mirror.replace(/\/+$/, '');
  const suite = process.env['ZAZEN_DEBIAN_SUITE'] || 'bookworm';
  return {
    name: `mirror-${suite}-${createHash('sha256').update(root).digest('hex').slice(0, 12)}`,
    async refresh(dir, log) {
      const keyring = await findKeyring();
      log(`reading Debian ${suite}'s package lists for ${architecture} from ${root}`);
      await mkdir(dir, { recursive: true });
      const signed = join(dir, 'InRelease');
      await writeFile(signed, await download(`${root}/dists/${suite}/InRelease`, 2 ** 22, signal));
      const release = await verifiedRelease(signed, keyring, signal);
      checkRelease(release, suite, Date.now());
      const name = `main/binary-${architecture}/Packages.xz`;
      const { sha256, sizeBytes } = releaseEntry(release, name);
      const packages = await download(`${root}/dists/${suite}/${name}`, sizeBytes, signal);
      checkDigest(packages, sha256, name);
      await writeFile(join(dir, 'Packages'), await decompress(packages));
    },
    async readIndex(dir) {
      const index = new PackageIndex();
      index.add(await readFile(join(dir, 'Packages'), 'utf8'));
      return index;
    },
    async download(_dir, entries, intoDir) {
      const paths: string[] = [];
      for (const { filename, sizeBytes } of entries) {
        const path = join(intoDir, basename(filename));
        await writeFile(path, await download(`${root}/${filename}`, sizeBytes, signal));
        paths.push(path);
      }
      return paths;
    },
  };
}

/** Throws unless `bytes` have the SHA-256 digest `sha256` (hexadecimal). */
export function checkDigest(bytes: Uint8Array, sha256: string, name: string): void {
  if (createHash('sha256').update(bytes).digest('hex') === sha256) return;
  throw new ZazenError('ZAZEN_GUEST_DIGEST', `${name}: its SHA-256 digest is not the one the archive promises`);
}

async function findKeyring(): Promise<string> {
  if (!(await hasTool('gpgv'))) {
    const message = 'gpgv is needed to check the signature of the Debian archive, and is not installed';
    throw new ZazenError('ZAZEN_GUEST_GPGV', message, { hint: installHint });
  }
  const own = process.env['ZAZEN_DEBIAN_KEYRING'];
  for (const path of own ? [own] : keyrings) if (await exists(path)) return path;
  const message = `no keyring of the Debian archive found (${own ?? keyrings[0]})`;
  throw new ZazenError('ZAZEN_GUEST_KEYRING', message, { hint: installHint });
}

/** The signed text of the InRelease file at `path`; throws unless it carries a good signature and no bad one. */
export async function verifiedRelease(path: string, keyring: string, signal?: AbortSignal): Promise<string> {
  // gpgv's exit status also counts keys it does not have, and an archive is signed with several: its words decide.
  const args = ['--status-fd', '2', '--keyring', keyring, '--output', '-', path];
  const { stdout, stderr } = await runTool('gpgv', args, { cwd: '/', signal });
  const words = new Set([...stderr.matchAll(/^\[GNUPG:\] (\S+)/gm)].map((match) => match[1]!));
  if (words.has('GOODSIG') && words.has('VALIDSIG') && !words.has('BADSIG')) return stdout;
  const message = `${basename(path)}: the archive's signature is not good`;
  throw new ZazenError('ZAZEN_GUEST_SIGNATURE', message, { hint: `checked with gpgv --keyring ${keyring}` });
}

function releaseField(release: string, name: string): string | undefined {
  return new RegExp(`^${name}: (.*)$`, 'm').exec(release)?.[1]?.trim();
}

/** Refuses a release that is not the one asked for, or that is kept past its date (an old one passed off as new). */
export function checkRelease(release: string, suite: string, nowMillis: number): void {
  const names = [releaseField(release, 'Suite'), releaseField(release, 'Codename')];
  if (!names.includes(suite)) {
    const message = `the mirror gives "${names[1] ?? names[0] ?? '?'}" for the release "${suite}"`;
    throw new ZazenError('ZAZEN_GUEST_RELEASE', message);
  }
  const validUntil = releaseField(release, 'Valid-Until');
  if (validUntil !== undefined && !(Date.parse(validUntil) > nowMillis)) {
    throw new ZazenError('ZAZEN_GUEST_RELEASE', `the mirror's release ${suite} was valid until ${validUntil} only`);
  }
}

/** Digest and size of the file `name`, from the SHA256 list of a Release file. */
export function releaseEntry(release: string, name: string): { sha256: string; sizeBytes: number } {
  const list = /^SHA256:\n((?: .*\n?)*)/m.exec(release)?.[1] ?? '';
  for (const line of list.split('\n')) {
    const [sha256, size, path] = line.trim().split(/\s+/);
    if (path === name && /^[0-9a-f]{64}$/.test(sha256!)) return { sha256: sha256!, sizeBytes: Number(size) };
  }
  throw new ZazenError('ZAZEN_GUEST_RELEASE', `the mirror's release has no ${name}`);
}

async function download(url: string, maxSizeBytes: number, signal: AbortSignal | undefined): Promise<Uint8Array> {
  const fail = (reason: string, cause?: unknown): never => {
    const hint = 'check ZAZEN_DEBIAN_MIRROR and the network';
    throw new ZazenError('ZAZEN_GUEST_DOWNLOAD', `cannot fetch ${url}: ${reason}`, { hint, cause });
  };
  try {
    const response = await fetch(url, signal ? { signal } : {});
    if (!response.ok || !response.body) return fail(`the mirror answers ${response.status}`);
    const chunks: Uint8Array[] = [];
    let sizeBytes = 0;
    for await (const chunk of response.body) {
      sizeBytes += chunk.length;
      if (sizeBytes > maxSizeBytes) return fail('it is larger than the archive promises');
      chunks.push(chunk);
    }
    return Buffer.concat(chunks, sizeBytes);
  } catch (cause) {
    if (cause instanceof ZazenError || signal?.aborted) throw cause;
    return fail(((cause as Error).cause as Error | undefined)?.message ?? (cause as Error).message, cause);
  }
}
