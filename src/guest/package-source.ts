// Where Debian packages come from: the host's apt, or an archive's mirror. Both verify the archive's signature before
// anything of it is believed, and give the same package lists.

import { ZazenError } from '../base/errors.ts';
import { aptSource } from './apt-source.ts';
import { mirrorSource } from './mirror-source.ts';
import type { PackageEntry, PackageIndex } from './package-index.ts';
import { hasTool } from './run-tool.ts';

export interface PackageSource {
  /** What to call it in messages, and in the name of its directory in the cache. */
  name: string;
  /** Brings the package lists in `dir` up to date. */
  refresh(dir: string, log: (line: string) => void): Promise<void>;
  readIndex(dir: string): Promise<PackageIndex>;
  /** Puts the packages into `intoDir` and gives their paths; the caller checks their digests. */
  download(dir: string, entries: readonly PackageEntry[], intoDir: string): Promise<string[]>;
}

/** The mirror named by ZAZEN_DEBIAN_MIRROR if it is set, else the host's apt. */
export async function choosePackageSource(architecture: string, signal?: AbortSignal): Promise<PackageSource> {
  const mirror = process.env['ZAZEN_DEBIAN_MIRROR'];
  if (mirror) return mirrorSource(mirror, architecture, signal);
  const source = (await hasTool('apt-get')) ? await aptSource(architecture, signal) : undefined;
  if (source) return source;
  throw new ZazenError('ZAZEN_GUEST_SOURCE', 'this host has no apt with Debian sources to fetch guest files with', {
    hint: 'set ZAZEN_DEBIAN_MIRROR to the address of a Debian mirror (…/debian), or give --kernel and --initrd',
  });
}
