// Debian packages through the host's own apt, which verifies signatures and knows the host's mirrors and proxies. All
// of apt's state is private: nothing of the host changes, no root is needed, and the host's other architectures and
// sources play no part. Of the host's sources those are taken that are Debian's.
//
//   <dir>/sources/    Debian's sources of the host        <dir>/lists/   the package lists, verified by apt
//   <dir>/cache/      apt's working files                 <dir>/apt.conf, <dir>/status (no package is installed)

import { mkdir, readFile, readdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { ZazenError } from '../base/errors.ts';
import { PackageIndex } from './package-index.ts';
import type { PackageEntry } from './package-index.ts';
import type { PackageSource } from './package-source.ts';
import { runTool } from './run-tool.ts';

/** A source that uses `apt-get`, or undefined if the host has no Debian sources. */
export async function aptSource(architecture: string, signal?: AbortSignal): Promise<PackageSource | undefined> {
  const sources = await hostDebianSources();
  if (sources.length === 0) return undefined;
  return {
    name: 'apt-get',
    refresh: (dir, log) => refresh(dir, sources, architecture, signal, log),
    readIndex,
    download: (dir, entries, intoDir) => download(dir, entries, intoDir, signal),
  };
}

async function refresh(
  dir: string,
  sources: { name: string; text: string }[],
  architecture: string,
  signal: AbortSignal | undefined,
  log: (line: string) => void,
): Promise<void> {
  for (const sub of ['sources', 'lists/partial', 'cache/archives/partial']) {
    await mkdir(join(dir, sub), { recursive: true });
  }
  for (const { name, text } of sources) await writeFile(join(dir, 'sources', name), text);
  await writeFile(join(dir, 'status'), '');
  await writeFile(join(dir, 'apt.conf'), configuration(architecture));
  log(`updating Debian's package lists for ${architecture} with apt-get`);
  await aptGet(dir, ['update'], dir, signal);
}

async function readIndex(dir: string): Promise<PackageIndex> {
  const index = new PackageIndex();
  for (const name of (await readdir(join(dir, 'lists'))).toSorted()) {
    if (name.endsWith('_Packages')) index.add(await readFile(join(dir, 'lists', name), 'utf8'));
  }
  return index;
}

async function download(
  dir: string,
  entries: readonly PackageEntry[],
  intoDir: string,
  signal: AbortSignal | undefined,
): Promise<string[]> {
  await aptGet(dir, ['download', ...entries.map(({ name, version }) => `${name}=${version}`)], intoDir, signal);
  // apt names the file so, with the colon of an epoch escaped.
  const fileName = ({ name, version, architecture }: PackageEntry): string =>
    `${name}_${version.replaceAll(':', '%3a')}_${architecture}.deb`;
  return entries.map((entry) => join(intoDir, fileName(entry)));
}

/** Read after the host's configuration, so that proxies stay and hooks (which would act on the host) go. */
function configuration(architecture: string): string {
  return `
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear APT::Architectures;
APT::Architecture "${architecture}";
APT::Architectures { "${architecture}"; };
APT::Update::Error-Mode "any";
APT::Sandbox::User "";
Acquire::GzipIndexes "false";
Acquire::Languages "none";
Acquire::Retries "3";
`;
}

async function aptGet(dir: string, args: string[], cwd: string, signal: AbortSignal | undefined): Promise<void> {
  // Directories are given here rather than in the file: a value there may not contain a double quote.
  const options = {
    'Dir::State': dir,
    'Dir::State::lists': join(dir, 'lists'),
    'Dir::State::status': join(dir, 'status'),
    'Dir::Cache': join(dir, 'cache'),
    'Dir::Etc::sourcelist': '/dev/null',
    'Dir::Etc::sourceparts': join(dir, 'sources'),
    'Dir::Etc::preferences': '/dev/null',
    'Dir::Etc::preferencesparts': '/dev/null',
  };
  const optionArgs = Object.entries(options).flatMap(([key, value]) => ['-o', `${key}=${value}`]);
  const { status, stderr } = await runTool('apt-get', ['-q', '-c', join(dir, 'apt.conf'), ...optionArgs, ...args], {
    cwd,
    signal,
  });
  if (status === 0) return;
  const reason = stderr.split('\n').find((line) => line.startsWith('E:')) ?? `exit status ${status}`;
  const hint = /no space left/i.test(reason) ? 'make room, or set ZAZEN_CACHE_DIR to a directory that has space'
    : 'check the network, or set ZAZEN_DEBIAN_MIRROR, or give --kernel and --initrd';
  throw new ZazenError('ZAZEN_GUEST_APT', `apt-get ${args.join(' ')} failed: ${reason.trim()}`, { hint });
}

/** The parts of the host's apt sources that are Debian's archive, without their limits to an architecture. */
async function hostDebianSources(): Promise<{ name: string; text: string }[]> {
  const files = ['/etc/apt/sources.list'];
  for (const name of (await readdir('/etc/apt/sources.list.d').catch(() => [])).toSorted()) {
    files.push(`/etc/apt/sources.list.d/${name}`);
  }
  const result: { name: string; text: string }[] = [];
  for (const [number, file] of files.entries()) {
    const extension = /\.(list|sources)$/.exec(file)?.[0];
    const content = extension === undefined ? '' : await readFile(file, 'utf8').catch(() => '');
    const text = extension === '.sources' ? debianStanzas(content) : debianLines(content);
    if (text !== '') result.push({ name: `${number}${extension}`, text });
  }
  return result;
}

/** Of a sources file in the deb822 form, the stanzas that are Debian's. Exported for its test. */
export function debianStanzas(content: string): string {
  const stanzas: string[] = [];
  for (const stanza of content.replaceAll(/^#.*\n/gm, '').split(/\n\s*\n/)) {
    const fields = stanza.trim().split(/\n(?=\S)/);
    const field = (name: string): string =>
      fields.find((line) => line.toLowerCase().startsWith(`${name}:`))?.slice(name.length + 1).trim() ?? '';
    if (field('enabled') === 'no' || !/\bdeb\b/.test(field('types').replaceAll('deb-src', ''))) continue;
    if (!isDebians(`${field('uris')} ${field('signed-by')}`)) continue;
    stanzas.push(['Types: deb', ...fields.filter((line) => !/^(types|architectures):/i.test(line))].join('\n'));
  }
  return stanzas.map((stanza) => `${stanza}\n`).join('\n');
}

/** Of a sources file with one source a line, the lines that are Debian's. Exported for its test. */
export function debianLines(content: string): string {
  const lines: string[] = [];
  for (const line of content.split('\n')) {
    const match = /^\s*deb\s+(?:\[([^\]]*)\]\s+)?(\S+\s+.*)$/.exec(line.replace(/#.*/, ''));
    if (!match || !isDebians(line)) continue;
    const options = (match[1] ?? '').split(/\s+/).filter((option) => option !== '' && !option.startsWith('arch'));
    lines.push(`deb ${options.length > 0 ? `[${options.join(' ')}] ` : ''}${match[2]!.trim()}`);
  }
  return lines.map((line) => `${line}\n`).join('');
}

function isDebians(text: string): boolean {
  return text.includes('debian-archive-keyring') || /\/debian(-security)?\/?(\s|$)/.test(text);
}
