// The store of a host: the tree that guests and toolstack share. Guests come in over connections (bytes), the toolstack
// by calls; both go through the same operations, so both see the same rules, events and transactions.

import { Connection } from './connection.ts';
import type { ConnectOptions } from './connection.ts';
import { StoreCore, SUPPORTED_FEATURES } from './core.ts';
import type { StoreHooks, StoreStats } from './core.ts';
import { dumpNodes, dumpedNodes } from './dump.ts';
import type { TreeDump } from './dump.ts';
import { XsError } from './errors.ts';
import { parentPath } from './path.ts';
import { isQuotaName } from './quota.ts';
import type { Quota } from './quota.ts';
import { Session } from './session.ts';
import { changesToSnapshot } from './snapshot.ts';
import type { StoreSnapshot } from './snapshot.ts';
import { Tree } from './tree.ts';
import { refusing, StoreView } from './view.ts';
import type { Watch } from './watches.ts';

export interface StoreOptions {
  /** For every domain that has no values of its own. */
  readonly quota?: Partial<Quota>;
  readonly hooks?: StoreHooks;
}

/** What the store knows of a domain beside its nodes, as JSON-able data. */
export interface DomainState {
  readonly shutdown: boolean;
  readonly features: number;
  /** Only what was set for this domain. */
  readonly quota: Partial<Quota>;
}

export type WatchCallback = (path: string) => void;

const TOOLSTACK_DOMAIN_ID = 0;
/** Where a snapshot is put together, in a tree that nobody sees. */
const BESIDE = '/snapshot';

export class Store extends StoreView {
  readonly #core: StoreCore;
  readonly #session: Session;
  readonly #callbacks = new Map<string, WatchCallback>();
  #lastToken = 0;

  constructor(options: StoreOptions = {}) {
    const core = new StoreCore(options);
    const session = new Session(core, TOOLSTACK_DOMAIN_ID, true, (watch, path) => this.#deliver(watch, path));
    super(core, session, core);
    this.#core = core;
    this.#session = session;
  }

  /** ZAZEN_STORE_EINVAL and the like if `state` is given and is none that a connection gave. */
  connect(options: ConnectOptions): Connection {
    return refusing(`connection of domain ${options.domainId}`, () => new Connection(this.#core, options));
  }

  /**
   * Tells of every change at or below a path, and of special names (`@introduceDomain`, `@releaseDomain`). Calls come
   * when the operation that made the change is over, the first without any change. A callback may use the store; it
   * must not throw.
   * @param options.depth levels below the path to tell of; all if not given.
   * @returns ends the watch: no call comes after.
   */
  watch(path: string, callback: WatchCallback, options: { depth?: number } = {}): () => void {
    const token = String(++this.#lastToken);
    this.#callbacks.set(token, callback);
    try {
      refusing(path, () =>
        this.#core.operate(() => this.#session.addWatch(path, token, options.depth ?? Infinity)));
    } catch (error) {
      this.#callbacks.delete(token);
      throw error;
    }
    return () => {
      if (this.#callbacks.delete(token)) this.#session.removeWatch(path, token);
    };
  }

  #deliver(watch: Watch, path: string): void {
    this.#core.deliverLater(() => this.#callbacks.get(watch.token)?.(path));
  }

  /**
   * Runs `change` in a transaction: what it does becomes visible, and fires watches, when it returns; if it throws,
   * nothing has happened. It runs once: no one else comes between, for it can't wait.
   */
  transaction<T>(change: (view: StoreView) => T): T {
    return refusing('transaction', () => this.#core.operate(() => {
      const id = this.#session.startTransaction();
      let commit = false;
      try {
        const result = change(new StoreView(this.#core, this.#session, this.#session.surface(id)));
        commit = true;
        return result;
      } finally {
        this.#session.endTransaction(id, commit);
      }
    }));
  }

  // -- Domains ---------------------------------------------------------------------------------------------------

  /** The domain's ring is served from now on. */
  domainIntroduced(domainId: number): void {
    this.#core.operate(() => this.#core.introduce(domainId));
  }

  /** It crashed or shut down, but still exists: @releaseDomain, once until `domainResumed`. */
  domainShutdown(domainId: number): void {
    this.#core.operate(() => this.#core.shutdown(domainId));
  }

  domainResumed(domainId: number): void {
    this.#core.resume(domainId);
  }

  /** It is gone: its nodes are removed, its number is taken out of all permissions, and @releaseDomain fires. */
  domainReleased(domainId: number): void {
    this.#core.operate(() => this.#core.release(domainId));
  }

  isIntroduced(domainId: number): boolean {
    return this.#core.introducedDomain(domainId) !== undefined;
  }

  /** For device models: the domain has what its target has. */
  setTarget(domainId: number, targetId: number | undefined): void {
    this.#core.domain(domainId).targetId = targetId;
  }

  /** `server_features` of the domain's ring. */
  features(domainId: number): number {
    return this.#core.featuresOf(domainId);
  }

  quota(domainId: number): Quota {
    return { ...this.#core.quota, ...this.#core.quotaOf(domainId) };
  }

  setQuota(domainId: number, quota: Partial<Quota>): void {
    Object.assign(this.#core.domain(domainId).quota, quota);
  }

  /** Nodes that the domain owns. */
  ownedNodes(domainId: number): number {
    return this.#core.ownedNodes(domainId);
  }

  // -- Saved state -----------------------------------------------------------------------------------------------

  /** The node with all below it, or undefined if it is not there. Watches and transactions belong to connections. */
  dump(path: string): TreeDump | undefined {
    const node = refusing(path, () => this.#core.tree.get(this.#session.path(path)));
    return node && dumpNodes(node);
  }

  /** The node with all below it as it is now, for ever; costs nothing. Undefined if it is not there. */
  snapshot(path: string): StoreSnapshot | undefined {
    return refusing(path, () => {
      this.#core.tree.freeze();
      return this.#core.tree.get(this.#session.path(path));
    });
  }

  /** A snapshot with what a dump has, made beside the tree. @throws ZazenError ZAZEN_STORE_EINVAL: it is none */
  snapshotOf(dump: TreeDump): StoreSnapshot | undefined {
    return refusing('dump', () => {
      const nodes = dumpedNodes(dump, BESIDE, (given) => this.#session.path(given));
      const node = Tree.frozen(nodes, this.#core.generations);
      if (node === undefined && nodes.length > 0) throw new XsError('EINVAL');
      return node;
    });
  }

  /** Whether the tree is still what the snapshot of that path says; costs nothing. */
  isUnchanged(path: string, snapshot: StoreSnapshot | undefined): boolean {
    return this.#core.tree.get(path) === snapshot;
  }

  /**
   * Makes the tree at `path`, whose parent exists, what a snapshot says; watches hear of what is changed by that.
   * @param options.domainIds in permissions, numbers of domains to write for the ones in the snapshot.
   */
  restoreSnapshot(
    path: string, snapshot: StoreSnapshot, options: { domainIds?: ReadonlyMap<number, number> } = {},
  ): void {
    refusing(path, () => this.#core.operate(() => {
      const at = this.#session.path(path);
      const { tree } = this.#core;
      if (tree.get(parentPath(at)) === undefined) throw new XsError('ENOENT');
      const changes = changesToSnapshot(at, tree.get(at), snapshot, options.domainIds ?? new Map());
      for (const change of changes) this.#core.apply(change);
    }));
  }

  saveDomain(domainId: number): DomainState {
    const { shutdown, features, quota } = this.#core.domain(domainId);
    return { shutdown, features, quota: { ...quota } };
  }

  /** Whether `saveDomain` would give the same as it once gave. */
  isDomainUnchanged(domainId: number, state: DomainState): boolean {
    const { shutdown, features, quota } = this.#core.domain(domainId);
    if (shutdown !== state.shutdown || features !== state.features) return false;
    const names = Object.keys(quota) as (keyof Quota)[];
    return names.length === Object.keys(state.quota).length && names.every((name) => quota[name] === state.quota[name]);
  }

  /** Before `domainIntroduced`. ZAZEN_STORE_EINVAL if the state is none that `saveDomain` gave. */
  restoreDomain(domainId: number, state: DomainState): void {
    refusing(`saved state of domain ${domainId}`, () => {
      const { shutdown, features, quota } = state;
      const isCount = (value: unknown) => Number.isSafeInteger(value) && (value as number) >= 0;
      const valid = typeof shutdown === 'boolean' && isCount(features) && (features & ~SUPPORTED_FEATURES) === 0
        && typeof quota === 'object' && quota !== null
        && Object.entries(quota).every(([name, value]) => isQuotaName(name) && isCount(value));
      if (!valid) throw new XsError('EINVAL');
      const domain = this.#core.domain(domainId);
      domain.features = features;
      domain.shutdown = shutdown;
      Object.assign(domain.quota, quota);
    });
  }

  stats(): StoreStats {
    return this.#core.stats();
  }

  /** What is inconsistent, one line each; empty if all is well. */
  audit(): string[] {
    return this.#core.audit();
  }
}
