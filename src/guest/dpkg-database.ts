// What dpkg knows of the packages of a system that was put together without it: so that in the guest `dpkg -l`, `dpkg -S`
// and `dpkg -V` tell the truth, `dpkg --configure -a` runs the maintainer scripts (which cannot be run here: they are the
// guest's programs), and apt installs more.
//
//   var/lib/dpkg/status                a stanza a package: its control file, a state, checksums of its conffiles
//   var/lib/dpkg/info/NAME.KIND        the files of its control archive; for "Multi-Arch: same", NAME is NAME:arm64
//   var/lib/dpkg/info/NAME.list        paths of everything in it
//   var/lib/dpkg/info/format           1: names with an architecture
//   etc/dpkg/dpkg.cfg.d/zazen          what was left out is left out of packages that are installed later, too

import { createHash } from 'node:crypto';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { ZazenError } from '../base/errors.ts';
import type { DebEntry } from './deb.ts';

export interface DebianPackage {
  /** As `readDebControl` gives them. */
  readonly control: ReadonlyMap<string, { readonly data: Uint8Array; readonly mode: number }>;
  readonly entries: readonly DebEntry[];
}

const DPKG = 'var/lib/dpkg';
/** The same as packages.ts leaves out of trees, in dpkg's words. */
const EXCLUDES = `path-exclude=/usr/share/doc/*
path-include=/usr/share/doc/*/copyright
path-exclude=/usr/share/man/*
path-exclude=/usr/share/locale/*
path-exclude=/usr/share/info/*
path-exclude=/usr/share/lintian/*
path-exclude=/usr/share/bug/*
path-exclude=/usr/lib/*/gconv/*
`;

/** Writes the database of `packages`, unpacked and not configured, into the tree at `root`. */
export async function writeDpkgDatabase(root: string, packages: readonly DebianPackage[]): Promise<void> {
  for (const dir of ['info', 'updates', 'triggers', 'alternatives', 'parts']) {
    await mkdir(join(root, DPKG, dir), { recursive: true });
  }
  const stanzas: string[] = [];
  for (const { control, entries } of packages) {
    const text = Buffer.from(control.get('control')?.data ?? '').toString('utf8').trimEnd();
    const field = (name: string): string | undefined => new RegExp(`^${name}:[ \\t]*(\\S+)`, 'm').exec(text)?.[1];
    const name = field('Package');
    if (name === undefined || !/^[a-z0-9][a-z0-9+.-]*$/.test(name)) {
      throw new ZazenError('ZAZEN_GUEST_PACKAGE', 'a package has no control file that says its name');
    }
    const known = field('Multi-Arch') === 'same' ? `${name}:${field('Architecture')}` : name;
    for (const [kind, { data, mode }] of control) {
      if (kind !== 'control') await writeFile(join(root, DPKG, 'info', `${known}.${kind}`), data, { mode });
    }
    const paths = entries.map(({ path }) => (path === '' ? '/.' : `/${path}`));
    await writeFile(join(root, DPKG, 'info', `${known}.list`), `${paths.join('\n')}\n`);
    const conffiles = await describeConffiles(root, Buffer.from(control.get('conffiles')?.data ?? '').toString('utf8'));
    stanzas.push(`${text.replace(/^(Package:.*)$/m, '$1\nStatus: install ok unpacked')}\n${conffiles}`);
  }
  await writeFile(join(root, DPKG, 'info/format'), '1\n');
  await writeFile(join(root, DPKG, 'status'), stanzas.map((stanza) => `${stanza}\n`).join(''));
  await mkdir(join(root, 'etc/dpkg/dpkg.cfg.d'), { recursive: true });
  await writeFile(join(root, 'etc/dpkg/dpkg.cfg.d/zazen'), EXCLUDES);
}

async function describeConffiles(root: string, list: string): Promise<string> {
  const lines: string[] = [];
  for (const path of list.split('\n').map((line) => line.trim()).filter((line) => line.startsWith('/'))) {
    const data = await readFile(join(root, path)).catch(() => undefined);
    if (data !== undefined) lines.push(` ${path} ${createHash('md5').update(data).digest('hex')}\n`);
  }
  return lines.length === 0 ? '' : `Conffiles:\n${lines.join('')}`;
}
