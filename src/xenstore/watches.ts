// Watches, found by path: a change looks up its own path and each of its ancestors, so its cost depends on the depth of
// the path and not on how many watches there are.

import { isSpecial, parentPath } from './path.ts';
import type { Actor } from './permissions.ts';

export interface Subscriber extends Actor {
  /**
   * @param path the event's path in the client's own terms: relative if the watch was set with a relative path.
   */
  notify(watch: Watch, path: string): void;
}

export interface Watch {
  readonly subscriber: Subscriber;
  /** Absolute path or special name. */
  readonly path: string;
  readonly token: string;
  /** Levels below `path` that match: 0 is the node alone, Infinity everything. */
  readonly depth: number;
  /** Characters of an event's path that the client does not see: its home, if it gave a relative path. */
  readonly hiddenPrefix: number;
}

/** The path of a watch, as its client gave it. */
export const watchedName = (watch: Watch) => watch.path.slice(watch.hiddenPrefix);

export type Visibility = (actor: Actor) => boolean;

export class WatchIndex {
  readonly #byPath = new Map<string, Set<Watch>>();

  add(watch: Watch): void {
    const watches = this.#byPath.get(watch.path);
    if (watches === undefined) this.#byPath.set(watch.path, new Set([watch]));
    else watches.add(watch);
  }

  remove(watch: Watch): void {
    const watches = this.#byPath.get(watch.path);
    watches?.delete(watch);
    if (watches?.size === 0) this.#byPath.delete(watch.path);
  }

  /** Whether there is a watch on this very path. */
  isWatched(path: string): boolean {
    return this.#byPath.has(path);
  }

  /** A node changed: tells the watches on it and on its ancestors. */
  fire(path: string, visible: Visibility): void {
    let levels = 0;
    for (let at = path; ; at = parentPath(at)) {
      this.#tell(at, path, levels, visible);
      if (at === '/') return;
      levels++;
    }
  }

  /** A node went with an ancestor: tells only the watches on the node itself, the others hear of the ancestor. */
  fireExact(path: string, visible: Visibility): void {
    this.#tell(path, path, 0, visible);
  }

  /** A domain came or went: `@name`, and with the domain's number for the watches that asked for it. */
  fireSpecial(name: string, domainId: number, visible: Visibility): void {
    const withDomain = `${name}/${domainId}`;
    for (const watch of this.#byPath.get(name) ?? []) {
      if (!visible(watch.subscriber)) continue;
      const detailed = watch.depth !== Infinity && watch.depth > 0;
      watch.subscriber.notify(watch, detailed ? withDomain : name);
    }
    this.#tell(withDomain, withDomain, 0, visible);
  }

  /** How many are set. */
  get size(): number {
    let count = 0;
    for (const watches of this.#byPath.values()) count += watches.size;
    return count;
  }

  #tell(watchedPath: string, path: string, levels: number, visible: Visibility): void {
    const watches = this.#byPath.get(watchedPath);
    if (watches === undefined) return;
    for (const watch of watches) {
      if (levels > watch.depth || !visible(watch.subscriber)) continue;
      watch.subscriber.notify(watch, isSpecial(path) ? path : path.slice(watch.hiddenPrefix));
    }
  }
}
