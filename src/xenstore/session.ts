// One client of the store, whichever way it comes in: its watches, its open transactions, and its bounds.

import { XsError } from './errors.ts';
import type { StoreCore } from './core.ts';
import type { Client, Surface } from './operations.ts';
import { canonicalPath, domainPath, isRelative } from './path.ts';
import { exceeds } from './quota.ts';
import type { Quota } from './quota.ts';
import { Transaction } from './transaction.ts';
import { watchedName } from './watches.ts';
import type { Subscriber, Watch } from './watches.ts';

export class Session implements Client, Subscriber {
  readonly domainId: number;
  readonly privileged: boolean;
  readonly #core: StoreCore;
  readonly #notify: (watch: Watch, path: string) => void;
  readonly #watches = new Map<string, Watch>();
  readonly #transactions = new Map<number, Transaction>();
  #lastTransactionId = 0;

  /** @param notify see `Subscriber.notify`. */
  constructor(
    core: StoreCore, domainId: number, privileged: boolean, notify: (watch: Watch, path: string) => void,
  ) {
    this.#core = core;
    this.domainId = domainId;
    this.privileged = privileged;
    this.#notify = notify;
  }

  get quota(): Quota {
    return this.#core.quotaOf(this.domainId);
  }

  get targetId(): number | undefined {
    return this.#core.targetOf(this.domainId);
  }

  notify(watch: Watch, path: string): void {
    this.#notify(watch, path);
  }

  path(given: string, allowSpecial = false): string {
    return canonicalPath(given, this.domainId, this.privileged ? 0 : this.quota['path-max'], allowSpecial);
  }

  // -- Transactions ----------------------------------------------------------------------------------------------

  /** What a request with this tx_id works on. ENOENT for a transaction that is not open. */
  surface(transactionId: number): Surface {
    if (transactionId === 0) return this.#core;
    const transaction = this.#transactions.get(transactionId);
    if (transaction === undefined) throw new XsError('ENOENT');
    return transaction;
  }

  startTransaction(): number {
    if (!this.privileged && exceeds(this.#transactions.size + 1, this.quota.transactions)) throw new XsError('ENOSPC');
    do {
      this.#lastTransactionId = (this.#lastTransactionId + 1) >>> 0;
    } while (this.#lastTransactionId === 0 || this.#transactions.has(this.#lastTransactionId));
    this.#open(this.#lastTransactionId, false);
    return this.#lastTransactionId;
  }

  endTransaction(transactionId: number, commit: boolean): void {
    const transaction = this.#transactions.get(transactionId);
    if (transaction === undefined) throw new XsError('ENOENT');
    this.#transactions.delete(transactionId);
    if (commit) transaction.commit();
  }

  /** Opens again what was open when the domain was saved; its client will be told to try again. */
  reopenTransaction(transactionId: number): void {
    this.#open(transactionId, true);
  }

  get transactionIds(): number[] {
    return [...this.#transactions.keys()];
  }

  #open(transactionId: number, doomed: boolean): void {
    const openBytes = () => this.#transactions.values().reduce((sum, { bytes }) => sum + bytes, 0);
    const transaction = new Transaction(this, this.#core, this.#core.generations, openBytes, doomed);
    this.#transactions.set(transactionId, transaction);
  }

  // -- Watches ---------------------------------------------------------------------------------------------------

  /** @param name path or special name. The watch fires once at once, after the operation that set it. */
  addWatch(name: string, token: string, depth: number): void {
    const watch = this.restoreWatch(name, token, depth);
    this.#core.deliverLater(() => {
      if (this.has(watch)) this.#core.operate(() => this.notify(watch, watchedName(watch)));
    });
  }

  /** Sets a watch without its first event. */
  restoreWatch(name: string, token: string, depth: number): Watch {
    const path = this.path(name, true);
    const key = watchKey(path, token);
    if (this.#watches.has(key)) throw new XsError('EEXIST');
    if (!this.privileged && exceeds(this.#watches.size + 1, this.quota.watches)) throw new XsError('E2BIG');
    const hiddenPrefix = isRelative(name) ? domainPath(this.domainId).length + 1 : 0;
    const watch: Watch = { subscriber: this, path, token, depth, hiddenPrefix };
    this.#watches.set(key, watch);
    this.#core.watches.add(watch);
    return watch;
  }

  removeWatch(name: string, token: string): void {
    const key = watchKey(this.path(name, true), token);
    const watch = this.#watches.get(key);
    if (watch === undefined) throw new XsError('ENOENT');
    this.#watches.delete(key);
    this.#core.watches.remove(watch);
  }

  has(watch: Watch): boolean {
    return this.#watches.get(watchKey(watch.path, watch.token)) === watch;
  }

  get watches(): Watch[] {
    return [...this.#watches.values()];
  }

  /** Drops all watches and transactions. */
  reset(): void {
    for (const watch of this.#watches.values()) this.#core.watches.remove(watch);
    this.#watches.clear();
    this.#transactions.clear();
  }
}

const watchKey = (path: string, token: string) => `${path}\0${token}`;
