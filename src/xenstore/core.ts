// The state of the store: the tree, the watches, the domains with their quotas, and the one place where a change takes
// effect. Clients (the wire's connections and the toolstack) work on it through sessions; nothing here knows of bytes.
//
// Events: a change only queues them (Subscriber.notify must not call back); `settle` hands them on when the outermost
// operation is over, so that whoever hears of a change finds it done, and a transaction's events come after its commit.

import { assert } from '../base/assert.ts';
import { XENSTORE_SERVER_FEATURE } from '../abi/xenstore-wire.ts';
import { applyToTree, checkNewPermissions } from './operations.ts';
import type { Change, Client, Surface } from './operations.ts';
import { ACCESS_NONE, ACCESS_READ, accessOf, ownerOf } from './permissions.ts';
import type { Actor, Permissions } from './permissions.ts';
import { parentPath } from './path.ts';
import { DEFAULT_QUOTA } from './quota.ts';
import type { Quota } from './quota.ts';
import { getNode, Tree, walk } from './tree.ts';
import type { GenerationCounter, Node } from './tree.ts';
import { WatchIndex } from './watches.ts';
import { XsError } from './errors.ts';

const INTRODUCE_DOMAIN = '@introduceDomain';
const RELEASE_DOMAIN = '@releaseDomain';
export const SUPPORTED_FEATURES = XENSTORE_SERVER_FEATURE.RECONNECTION | XENSTORE_SERVER_FEATURE.ERROR
  | XENSTORE_SERVER_FEATURE.WATCHDEPTH;

/** What INTRODUCE and RELEASE set off outside the store, when a privileged client sends them over the wire. */
export interface StoreHooks {
  /** @returns whether there is such a domain and its ring could be reached. */
  introduce?(domainId: number, gfn: number, port: number): boolean;
  release?(domainId: number): void;
}

export interface Domain {
  readonly id: number;
  introduced: boolean;
  /** Its shutdown has been announced by @releaseDomain. */
  shutdown: boolean;
  features: number;
  targetId: number | undefined;
  /** Own values win over the store's. */
  readonly quota: Quota;
  /** Paths of the nodes that it owns. */
  readonly owned: Set<string>;
  /** Paths of the nodes whose permissions name it, but not as owner. */
  readonly named: Set<string>;
}

export interface StoreStats {
  readonly nodes: number;
  readonly watches: number;
  /** That own, may use, or are configured to use anything here, the toolstack's included. */
  readonly domains: number;
}

const TOOLSTACK_ONLY: Permissions = [{ domainId: 0, access: ACCESS_NONE }];

export class StoreCore implements Surface {
  readonly tree: Tree;
  readonly watches = new WatchIndex();
  readonly hooks: StoreHooks;
  /** Quotas of every domain without values of its own. */
  readonly quota: Quota;
  readonly generations: GenerationCounter = { last: 0 };
  readonly #domains = new Map<number, Domain>();
  readonly #special = new Map<string, Permissions>([
    [INTRODUCE_DOMAIN, TOOLSTACK_ONLY], [RELEASE_DOMAIN, TOOLSTACK_ONLY],
  ]);
  #deliveries: (() => void)[] = [];
  #depth = 0;
  #settling = false;

  constructor(options: { quota?: Partial<Quota>; hooks?: StoreHooks }) {
    this.quota = { ...DEFAULT_QUOTA, ...options.quota };
    this.hooks = options.hooks ?? {};
    this.tree = new Tree(Tree.emptyRoot(TOOLSTACK_ONLY), this.generations,
      (path, before, after) => this.#index(path, before, after));
    this.#index('/', undefined, TOOLSTACK_ONLY);
  }

  // -- Operations ------------------------------------------------------------------------------------------------

  /** Runs one operation; when the outermost is over, events go out. */
  operate<T>(operation: () => T): T {
    this.#depth++;
    try {
      return operation();
    } finally {
      this.#depth--;
      if (this.#depth === 0 && !this.#settling) this.#settle();
    }
  }

  /** Called when the outermost operation is over, in order. */
  deliverLater(delivery: () => void): void {
    assert(this.#depth > 0 || this.#settling, 'events arise in operations only');
    this.#deliveries.push(delivery);
  }

  #settle(): void {
    this.#settling = true;
    try {
      while (this.#deliveries.length > 0) {
        const deliveries = this.#deliveries;
        this.#deliveries = [];
        for (const deliver of deliveries) deliver();
      }
    } finally {
      this.#settling = false;
    }
  }

  // -- Surface ---------------------------------------------------------------------------------------------------

  touch(): void {
    // Outside a transaction an operation is its own moment: nothing can come between.
  }

  ownedNodes(domainId: number): number {
    return this.#domains.get(domainId)?.owned.size ?? 0;
  }

  apply(change: Change): void {
    const before = this.tree.get(change.path)?.permissions;
    const removed = applyToTree(this.tree, change);
    if (removed !== undefined) return this.#fireRemoved(change.path, removed);
    this.watches.fire(change.path, this.#canSee(change.path, before));
    if (change.type === 'graft') this.#fireBelow(change.path, change.node);
  }

  /** Nodes that came with one above them are announced to the watches on themselves. */
  #fireBelow(path: string, node: Node): void {
    for (const [at] of walk(node, path)) {
      if (at !== path && this.watches.isWatched(at)) this.watches.fireExact(at, this.#canSee(at, undefined));
    }
  }

  /** A removed node is announced to whoever could read it or its parent. */
  #fireRemoved(path: string, removed: Node): void {
    const visibleOf = ({ permissions }: Node, parent: Node) => (actor: Actor) =>
      mayRead(actor, permissions) || mayRead(actor, parent.permissions);
    this.watches.fire(path, visibleOf(removed, this.tree.get(parentPath(path))!));
    for (const [at, node] of walk(removed, path)) {
      if (at === path || !this.watches.isWatched(at)) continue;
      const parent = getNode(removed, parentPath(at).slice(path.length) || '/')!;
      this.watches.fireExact(at, visibleOf(node, parent));
    }
  }

  /** A changed node is announced to whoever can read it or its parent, or could read it before. */
  #canSee(path: string, before: Permissions | undefined): (actor: Actor) => boolean {
    const after = this.tree.get(path)!.permissions;
    const parent = path === '/' ? undefined : this.tree.get(parentPath(path))!.permissions;
    return (actor) => mayRead(actor, after) || (before !== undefined && mayRead(actor, before))
      || (parent !== undefined && mayRead(actor, parent));
  }

  #index(path: string, before: Permissions | undefined, after: Permissions | undefined): void {
    before?.forEach(({ domainId }, i) => {
      const domain = this.domain(domainId);
      (i === 0 ? domain.owned : domain.named).delete(path);
      this.#forgetIfUnused(domain);
    });
    after?.forEach(({ domainId }, i) => {
      const domain = this.domain(domainId);
      (i === 0 ? domain.owned : domain.named).add(path);
    });
  }

  // -- Special names ---------------------------------------------------------------------------------------------

  /** ENOENT for a name that is neither @introduceDomain nor @releaseDomain, EACCES for one that may not be read. */
  specialPermissions(actor: Actor, name: string): Permissions {
    const permissions = this.#special.get(name);
    if (permissions === undefined) throw new XsError('ENOENT');
    if (!mayRead(actor, permissions)) throw new XsError('EACCES');
    return permissions;
  }

  setSpecialPermissions(client: Client, name: string, permissions: Permissions): void {
    checkNewPermissions(client, this.specialPermissions(client, name), permissions);
    this.#special.set(name, permissions);
  }

  #fireSpecial(name: string, domainId: number): void {
    const permissions = this.#special.get(name)!;
    this.watches.fireSpecial(name, domainId, (actor) => mayRead(actor, permissions));
  }

  // -- Domains ---------------------------------------------------------------------------------------------------

  domain(id: number): Domain {
    const known = this.#domains.get(id);
    if (known !== undefined) return known;
    const quota: Quota = Object.create(this.quota);
    const domain: Domain = {
      id, introduced: false, shutdown: false, features: SUPPORTED_FEATURES, targetId: undefined, quota,
      owned: new Set(), named: new Set(),
    };
    this.#domains.set(id, domain);
    return domain;
  }

  quotaOf(id: number): Quota {
    return this.#domains.get(id)?.quota ?? this.quota;
  }

  targetOf(id: number): number | undefined {
    return this.#domains.get(id)?.targetId;
  }

  featuresOf(id: number): number {
    return this.#domains.get(id)?.features ?? SUPPORTED_FEATURES;
  }

  introducedDomain(id: number): Domain | undefined {
    const domain = this.#domains.get(id);
    return domain?.introduced ? domain : undefined;
  }

  introduce(id: number): void {
    this.domain(id).introduced = true;
    this.#fireSpecial(INTRODUCE_DOMAIN, id);
  }

  /** The domain crashed or shut down, but is still there. Announced once, until `resume`. */
  shutdown(id: number): void {
    const domain = this.introducedDomain(id);
    if (domain === undefined || domain.shutdown) return;
    domain.shutdown = true;
    this.#fireSpecial(RELEASE_DOMAIN, id);
  }

  resume(id: number): void {
    const domain = this.introducedDomain(id);
    if (domain !== undefined) domain.shutdown = false;
  }

  /**
   * The domain is gone: what it owned goes, and its number loses every permission, for the number may be used again.
   */
  release(id: number): void {
    const domain = this.#domains.get(id);
    if (domain === undefined) return;
    for (const path of [...domain.owned]) {
      // A node may have gone with one above it; the root stays, under the toolstack.
      if (!domain.owned.has(path)) continue;
      if (path === '/') this.apply({ type: 'permissions', path, permissions: TOOLSTACK_ONLY });
      else this.apply({ type: 'remove', path });
    }
    for (const path of [...domain.named]) {
      const [owner, ...others] = this.tree.get(path)!.permissions;
      const permissions = [owner!, ...others.filter(({ domainId }) => domainId !== id)];
      this.apply({ type: 'permissions', path, permissions });
    }
    for (const [name, [owner, ...others]] of this.#special) {
      const left = others.filter(({ domainId }) => domainId !== id);
      this.#special.set(name, [owner!.domainId === id ? TOOLSTACK_ONLY[0]! : owner!, ...left]);
    }
    for (const other of this.#domains.values()) if (other.targetId === id) other.targetId = undefined;
    this.#domains.delete(id);
    if (domain.introduced) this.#fireSpecial(RELEASE_DOMAIN, id);
  }

  /** Domains that were only ever named leave nothing behind. */
  #forgetIfUnused(domain: Domain): void {
    const used = domain.introduced || domain.owned.size > 0 || domain.named.size > 0 || domain.targetId !== undefined
      || domain.features !== SUPPORTED_FEATURES || Object.keys(domain.quota).length > 0;
    if (!used) this.#domains.delete(domain.id);
  }

  // -- Audit -----------------------------------------------------------------------------------------------------

  stats(): StoreStats {
    let nodes = 0;
    for (const { owned } of this.#domains.values()) nodes += owned.size;
    return { nodes, watches: this.watches.size, domains: this.#domains.size };
  }

  /** What is inconsistent, one line each; empty if all is well. Walks the whole tree. */
  audit(): string[] {
    const faults: string[] = [];
    const owned = new Map<number, number>();
    for (const [path, node] of walk(this.tree.get('/')!, '/')) {
      const owner = ownerOf(node.permissions);
      owned.set(owner, (owned.get(owner) ?? 0) + 1);
      if (!this.#domains.get(owner)?.owned.has(path)) faults.push(`${path}: not in the index of its owner`);
      let listBytes = 0;
      for (const name of node.children.keys()) listBytes += name.length + 1;
      if (listBytes !== node.childListBytes) faults.push(`${path}: length of the list of children is wrong`);
    }
    for (const { id, owned: paths } of this.#domains.values()) {
      if (paths.size !== (owned.get(id) ?? 0)) faults.push(`domain ${id}: count of owned nodes is wrong`);
    }
    return faults;
  }
}

const mayRead = (actor: Actor, permissions: Permissions) => (accessOf(actor, permissions) & ACCESS_READ) !== 0;
