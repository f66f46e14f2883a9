// The toolstack's way into the store, without the wire but through the same operations. Paths may be relative to
// /local/domain/0. Values are strings in UTF-8; `readBytes` gives them as they are. A node that is not there reads as
// undefined; anything else that can't be done is an operator's error, `ZAZEN_STORE_<errno>`.

import { ZazenError } from '../base/errors.ts';
import type { StoreCore } from './core.ts';
import { XsError } from './errors.ts';
import { directory, getPermissions, makeDirectory, read, remove, setPermissions, write } from './operations.ts';
import type { Surface } from './operations.ts';
import { formatPermission, parsePermissions } from './permissions.ts';
import type { Session } from './session.ts';

const REASONS: Partial<Record<string, string>> = {
  EINVAL: 'not a valid path or value',
  ENOENT: 'no such node',
  EEXIST: 'it exists already',
  EAGAIN: 'another change came between',
};

/** Runs an operation for the toolstack: a refusal becomes an operator's error that names what it was about. */
export function refusing<T>(subject: string, operation: () => T): T {
  try {
    return operation();
  } catch (error) {
    if (!(error instanceof XsError)) throw error;
    const reason = REASONS[error.errno] ?? error.errno;
    throw new ZazenError(`ZAZEN_STORE_${error.errno}`, `store: ${subject}: ${reason}`);
  }
}

export class StoreView {
  readonly #core: StoreCore;
  readonly #session: Session;
  readonly #surface: Surface;

  constructor(core: StoreCore, session: Session, surface: Surface) {
    this.#core = core;
    this.#session = session;
    this.#surface = surface;
  }

  read(path: string): string | undefined {
    const value = this.readBytes(path);
    return value === undefined ? undefined : new TextDecoder().decode(value);
  }

  readBytes(path: string): Uint8Array | undefined {
    return this.#ifThere(path, (at) => read(this.#surface, this.#session, at).slice());
  }

  exists(path: string): boolean {
    return this.#ifThere(path, (at) => read(this.#surface, this.#session, at)) !== undefined;
  }

  /** Makes missing parents, too. */
  write(path: string, value: string | Uint8Array): void {
    const bytes = typeof value === 'string' ? new TextEncoder().encode(value) : value.slice();
    this.#run(path, (at) => write(this.#surface, this.#session, at, bytes));
  }

  /** Leaves a node that exists as it is. */
  mkdir(path: string): void {
    this.#run(path, (at) => makeDirectory(this.#surface, this.#session, at));
  }

  /** Removes the node with all below it; nothing happens if it or a parent is not there. */
  rm(path: string): void {
    this.#ifThere(path, (at) => remove(this.#surface, this.#session, at));
  }

  /** Names of the children, in order of creation. */
  list(path: string): string[] | undefined {
    return this.#ifThere(path, (at) => [...directory(this.#surface, this.#session, at).children.keys()]);
  }

  /** As on the wire: `n0` for the owner with the others' access, then one entry a domain, `r5`. */
  getPerms(path: string): string[] | undefined {
    return this.#ifThere(path, (at) => getPermissions(this.#surface, this.#session, at).map(formatPermission));
  }

  setPerms(path: string, permissions: readonly string[]): void {
    this.#run(path, (at) => setPermissions(this.#surface, this.#session, at, parsePermissions(permissions)));
  }

  #run<T>(path: string, operation: (canonical: string) => T): T {
    return refusing(path, () => this.#core.operate(() => operation(this.#session.path(path))));
  }

  #ifThere<T>(path: string, operation: (canonical: string) => T): T | undefined {
    return this.#run(path, (at) => {
      try {
        return operation(at);
      } catch (error) {
        if (error instanceof XsError && error.errno === 'ENOENT') return undefined;
        throw error;
      }
    });
  }
}
