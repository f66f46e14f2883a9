// Names of the host's hosts file. It is read again when a look-up finds that it has changed, at most every few seconds.

import { readFileSync, statSync } from 'node:fs';
import { parseAddress } from './addresses.ts';
import type { Scheduler } from './scheduler.ts';

const CHECK_MILLIS = 5000;
const MAX_BYTES = 1 << 20;

export class HostsFile {
  readonly #path: string;
  readonly #scheduler: Scheduler;
  #names = new Map<string, number[]>();
  #checkedMillis = -Infinity;
  #modified = '';

  constructor(path: string, scheduler: Scheduler) {
    this.#path = path;
    this.#scheduler = scheduler;
  }

  /** IPv4 addresses of a name in lower case; undefined if the file does not have it. */
  lookUp(name: string): readonly number[] | undefined {
    this.#refresh();
    return this.#names.get(name);
  }

  #refresh(): void {
    const nowMillis = this.#scheduler.nowMillis();
    if (nowMillis - this.#checkedMillis < CHECK_MILLIS) return;
    this.#checkedMillis = nowMillis;
    try {
      const { mtimeMs, size } = statSync(this.#path);
      const modified = `${mtimeMs} ${size}`;
      if (modified === this.#modified) return;
      this.#modified = modified;
      this.#names = size > MAX_BYTES ? new Map() : parseHosts(readFileSync(this.#path, 'utf8'));
    } catch {
      this.#names = new Map(); // a host without the file has no names in it
      this.#modified = '';
    }
  }
}

function parseHosts(text: string): Map<string, number[]> {
  const names = new Map<string, number[]>();
  for (const line of text.split('\n')) {
    const [first, ...rest] = line.replace(/#.*/, '').trim().split(/\s+/);
    const address = parseAddress(first ?? '');
    if (address === undefined) continue;
    for (const name of rest.map((word) => word.toLowerCase())) {
      const addresses = names.get(name);
      if (addresses === undefined) names.set(name, [address]);
      else if (!addresses.includes(address)) addresses.push(address);
    }
  }
  return names;
}
