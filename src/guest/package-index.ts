// The package lists of a Debian archive ("Packages" files): finding the newest version of a package and everything it
// depends on. Versions compare as Debian policy 5.6.12 says.

import { ZazenError } from '../base/errors.ts';

export interface PackageEntry {
  name: string;
  version: string;
  architecture: string;
  /** Path below the root of the archive. */
  filename: string;
  sizeBytes: number;
  sha256: string;
  /** Pre-Depends and Depends: all of these, of each any one. */
  depends: Alternative[][];
}

interface Alternative {
  name: string;
  relation?: string;
  version?: string;
}

export class PackageIndex {
  readonly #byName = new Map<string, string[]>();
  readonly #providers = new Map<string, string[]>();
  readonly #parsed = new Map<string, PackageEntry>();

  /** Adds the packages of one Packages file. */
  add(packages: string): void {
    for (const stanza of packages.split(/\n\n+/)) {
      const name = /^Package: (.+)$/m.exec(stanza)?.[1];
      if (name === undefined) continue;
      push(this.#byName, name, stanza);
      const provides = /^Provides: (.+)$/m.exec(stanza)?.[1];
      for (const item of provides?.split(',') ?? []) push(this.#providers, item.trim().split(/[ (]/)[0]!, name);
    }
  }

  /** The newest version of `name`, which is also searched among what packages provide; undefined if there is none. */
  find(name: string): PackageEntry | undefined {
    let best: PackageEntry | undefined;
    for (const stanza of this.#byName.get(name) ?? []) {
      const entry = this.#parse(stanza);
      if (best === undefined || compareDebianVersions(entry.version, best.version) > 0) best = entry;
    }
    if (best !== undefined) return best;
    const provider = this.#providers.get(name)?.toSorted()[0];
    return provider === undefined ? undefined : this.find(provider);
  }

  require(name: string): PackageEntry {
    const entry = this.find(name);
    if (entry) return entry;
    throw new ZazenError('ZAZEN_GUEST_PACKAGE_UNKNOWN', `the Debian archive has no package "${name}"`);
  }

  /** Names of the packages without which there is no Debian: those of priority "required". */
  required(): string[] {
    const names: string[] = [];
    for (const [name, stanzas] of this.#byName) {
      if (stanzas.some((stanza) => /^Priority: required$/m.test(stanza))) names.push(name);
    }
    return names.toSorted();
  }

  /** `names` and, when asked, all that they depend on (not what they only recommend); dependencies come first. */
  resolve(names: readonly string[], withDependencies: boolean): PackageEntry[] {
    const chosen = new Map<string, PackageEntry>();
    const visiting = new Set<string>();
    // What was asked for, or is there already, serves as well as another one that would have to come along.
    const isThere = (name: string): boolean => visiting.has(name) || names.includes(name);
    const visit = (entry: PackageEntry): void => {
      if (visiting.has(entry.name)) return;
      visiting.add(entry.name);
      if (withDependencies) {
        for (const alternatives of entry.depends) visit(this.#choose(alternatives, isThere, entry.name));
      }
      chosen.set(entry.name, entry);
    };
    for (const name of names) visit(this.require(name));
    return [...chosen.values()];
  }

  #choose(alternatives: Alternative[], isThere: (name: string) => boolean, neededBy: string): PackageEntry {
    const fitting = alternatives.flatMap((alternative) => this.#fitting(alternative));
    const entry = fitting.find(({ name }) => isThere(name)) ?? fitting[0];
    if (entry) return entry;
    const wanted = alternatives.map(({ name }) => name).join(' or ');
    throw new ZazenError('ZAZEN_GUEST_PACKAGE_UNKNOWN', `${neededBy} needs ${wanted}, which the archive does not have`);
  }

  /** The package of that name in a version that will do; of a name that is none, all packages that provide it. */
  #fitting({ name, relation, version }: Alternative): PackageEntry[] {
    const providers = this.#byName.has(name) ? [name] : (this.#providers.get(name) ?? []).toSorted();
    return providers.flatMap((provider) => {
      const entry = this.find(provider);
      const isGood = entry && (provider !== name || !relation || !version || holds(entry.version, relation, version));
      return isGood ? [entry] : [];
    });
  }

  #parse(stanza: string): PackageEntry {
    const known = this.#parsed.get(stanza);
    if (known) return known;
    const field = (name: string): string => new RegExp(`^${name}: (.+)$`, 'm').exec(stanza)?.[1]?.trim() ?? '';
    const entry: PackageEntry = {
      name: field('Package'),
      version: field('Version'),
      architecture: field('Architecture'),
      filename: field('Filename'),
      sizeBytes: Number(field('Size')),
      sha256: field('SHA256').toLowerCase(),
      depends: [...parseDepends(field('Pre-Depends')), ...parseDepends(field('Depends'))],
    };
    this.#parsed.set(stanza, entry);
    return entry;
  }
}

function push<V>(map: Map<string, V[]>, key: string, value: V): void {
  const list = map.get(key);
  if (list) list.push(value);
  else map.set(key, [value]);
}

function parseDepends(text: string): Alternative[][] {
  if (text === '') return [];
  return text.split(',').map((group) =>
    group.split('|').map((item) => {
      const match = /^([a-z0-9][a-z0-9+.-]*)(?::[a-z0-9-]+)?(?:\s*\((<<|<=|=|>=|>>)\s*([^)\s]+)\))?/.exec(item.trim());
      return match ? { name: match[1]!, relation: match[2], version: match[3] } : { name: item.trim() };
    }),
  );
}

function holds(version: string, relation: string, wanted: string): boolean {
  const order = compareDebianVersions(version, wanted);
  switch (relation) {
    case '<<':
      return order < 0;
    case '<=':
      return order <= 0;
    case '=':
      return order === 0;
    case '>=':
      return order >= 0;
    default:
      return order > 0;
  }
}

/** Negative, zero or positive as version `a` is older than, the same as, or newer than `b`. */
export function compareDebianVersions(a: string, b: string): number {
  const [epochA, upstreamA, revisionA] = splitVersion(a);
  const [epochB, upstreamB, revisionB] = splitVersion(b);
  return epochA - epochB || comparePart(upstreamA, upstreamB) || comparePart(revisionA, revisionB);
}

function splitVersion(version: string): [epoch: number, upstream: string, revision: string] {
  const colon = version.indexOf(':');
  const dash = version.lastIndexOf('-');
  const end = dash > colon ? dash : version.length;
  return [colon < 0 ? 0 : Number(version.slice(0, colon)), version.slice(colon + 1, end), version.slice(end + 1)];
}

/** Runs of non-digits and of digits in turn; among non-digits `~` sorts before the end, letters before the rest. */
function comparePart(a: string, b: string): number {
  let i = 0;
  let j = 0;
  const isDigit = (c: string | undefined): boolean => c !== undefined && c >= '0' && c <= '9';
  const weight = (c: string | undefined): number => {
    if (c === undefined || isDigit(c)) return 0;
    if (c === '~') return -1;
    return /[A-Za-z]/.test(c) ? c.charCodeAt(0) : c.charCodeAt(0) + 256;
  };
  while (i < a.length || j < b.length) {
    while ((i < a.length && !isDigit(a[i])) || (j < b.length && !isDigit(b[j]))) {
      const order = weight(a[i]) - weight(b[j]);
      if (order !== 0) return order;
      i++;
      j++;
    }
    const startA = i;
    const startB = j;
    while (isDigit(a[i])) i++;
    while (isDigit(b[j])) j++;
    const order = Number(a.slice(startA, i) || '0') - Number(b.slice(startB, j) || '0');
    if (order !== 0) return order;
  }
  return 0;
}
