// A transaction: the root when it began, a tree of its own that grew from it, the paths it touched, and its changes in
// order. It commits if none of the touched paths has changed in the store since it began; then its changes are applied
// to the store as they are, whatever else happened elsewhere in between. So every committed transaction has the effect
// it would have had alone at the moment of its commit. One that changed nothing saw the store as it was when it began,
// and commits always.

import { XsError } from './errors.ts';
import { applyToTree, TOUCH_CHILDREN, TOUCH_DATA } from './operations.ts';
import type { Change, Client, Surface } from './operations.ts';
import { ownerOf } from './permissions.ts';
import type { Permissions } from './permissions.ts';
import { exceeds } from './quota.ts';
import { getNode, Tree } from './tree.ts';
import type { GenerationCounter, Node } from './tree.ts';

/** Rough cost of remembering one path or change, beside its bytes. */
const RECORD_OVERHEAD_BYTES = 64;

export class Transaction implements Surface {
  readonly tree: Tree;
  /** Bytes that the remembered paths and changes hold. */
  bytes = 0;
  readonly #client: Client;
  readonly #store: Surface;
  readonly #base: Node;
  readonly #touched = new Map<string, number>();
  readonly #changes: Change[] = [];
  /** Nodes that each domain gained. */
  readonly #gained = new Map<number, number>();
  readonly #openBytes: () => number;
  #doomed: boolean;

  /**
   * @param openBytes bytes of all of the client's open transactions.
   * @param doomed commits with EAGAIN: a transaction that was open when its domain was saved.
   */
  constructor(
    client: Client, store: Surface, counter: GenerationCounter, openBytes: () => number, doomed: boolean,
  ) {
    this.#client = client;
    this.#store = store;
    this.#base = store.tree.freeze();
    this.#openBytes = openBytes;
    this.#doomed = doomed;
    this.tree = new Tree(this.#base, counter, (_path, before, after) => this.#count(before, after));
  }

  touch(path: string, aspects: number): void {
    const before = this.#touched.get(path);
    if (before === undefined && !this.#client.privileged
      && exceeds(this.#touched.size + 1, this.#client.quota['transaction-nodes'])) {
      throw new XsError('ENOSPC');
    }
    if (before === undefined) this.#hold(path.length);
    this.#touched.set(path, (before ?? 0) | aspects);
  }

  apply(change: Change): void {
    this.#hold(change.path.length + (change.type === 'write' ? change.value.length : 0));
    applyToTree(this.tree, change);
    this.#changes.push(change);
  }

  ownedNodes(domainId: number): number {
    return this.#store.ownedNodes(domainId) + (this.#gained.get(domainId) ?? 0);
  }

  /** EAGAIN on a conflict, ENOSPC if the client would then own too many nodes; in both cases nothing was changed. */
  commit(): void {
    if (this.#doomed) throw new XsError('EAGAIN');
    if (this.#changes.length === 0) return;
    for (const [path, aspects] of this.#touched) {
      if (this.#isChanged(path, aspects)) throw new XsError('EAGAIN');
    }
    const { domainId, privileged, quota } = this.#client;
    const gained = this.#gained.get(domainId) ?? 0;
    if (!privileged && gained > 0 && exceeds(this.#store.ownedNodes(domainId) + gained, quota.nodes)) {
      throw new XsError('ENOSPC');
    }
    for (const change of this.#changes) this.#store.apply(change);
  }

  #hold(bytes: number): void {
    const held = bytes + RECORD_OVERHEAD_BYTES;
    if (!this.#client.privileged && exceeds(this.#openBytes() + held, this.#client.quota['transaction-bytes'])) {
      throw new XsError('ENOSPC');
    }
    this.bytes += held;
  }

  #isChanged(path: string, aspects: number): boolean {
    const before = getNode(this.#base, path);
    const now = this.#store.tree.get(path);
    if (before === undefined || now === undefined) return before !== now;
    return ((aspects & TOUCH_DATA) !== 0 && before.dataGeneration !== now.dataGeneration)
      || ((aspects & TOUCH_CHILDREN) !== 0 && before.childrenGeneration !== now.childrenGeneration);
  }

  #count(before: Permissions | undefined, after: Permissions | undefined): void {
    if (before !== undefined) this.#gain(ownerOf(before), -1);
    if (after !== undefined) this.#gain(ownerOf(after), 1);
  }

  #gain(domainId: number, nodes: number): void {
    this.#gained.set(domainId, (this.#gained.get(domainId) ?? 0) + nodes);
  }
}
