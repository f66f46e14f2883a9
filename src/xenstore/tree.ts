// The tree of nodes, with snapshots that cost nothing. A node belongs to the tree that made it; a tree changes its own
// nodes in place and copies any other on the way to a change. Freezing a tree disowns all its nodes, so the root handed
// out never changes again: without open transactions a write copies nothing, with one it copies a path.
//
// Two generation counts a node tell a value or permission change from a change in the list of children, so that two
// transactions that add different children to one node do not conflict. Counts come from one counter for all trees of
// a store, so equal counts mean the same version.

import { assert } from '../base/assert.ts';
import { childPath, leafName, parentPath, pathNames } from './path.ts';
import type { Permissions } from './permissions.ts';

export interface Node {
  readonly value: Uint8Array;
  readonly permissions: Permissions;
  /** In order of creation. */
  readonly children: ReadonlyMap<string, Node>;
  /** Sum of child names, each with its NUL: the length of a DIRECTORY reply. */
  readonly childListBytes: number;
  readonly dataGeneration: number;
  readonly childrenGeneration: number;
}

interface OwnedNode extends Node {
  owner: object;
  value: Uint8Array;
  permissions: Permissions;
  children: Map<string, OwnedNode>;
  childListBytes: number;
  dataGeneration: number;
  childrenGeneration: number;
}

export interface PlainNode {
  readonly path: string;
  readonly value: Uint8Array;
  readonly permissions: Permissions;
}

export interface GenerationCounter {
  last: number;
}

/** Told of every node that comes (`before` undefined), goes (`after` undefined) or changes its permissions. */
export type PermissionObserver =
  (path: string, before: Permissions | undefined, after: Permissions | undefined) => void;

const NO_VALUE = new Uint8Array(0);
/** Shared by all leaves, never written. */
const NO_CHILDREN: Map<string, OwnedNode> = new Map();

export function getNode(root: Node, path: string): Node | undefined {
  let node: Node | undefined = root;
  for (const name of pathNames(path)) {
    node = node.children.get(name);
    if (node === undefined) return undefined;
  }
  return node;
}

/** Every node from `node` down, parents first, children in order. Not recursive: a guest decides how deep it is. */
export function* walk(node: Node, path: string): Generator<[path: string, node: Node]> {
  const pending: [string, Node][] = [[path, node]];
  for (let next = pending.pop(); next !== undefined; next = pending.pop()) {
    yield next;
    const { children } = next[1];
    if (children.size === 0) continue;
    const below = [...children].reverse();
    for (const [name, child] of below) pending.push([childPath(next[0], name), child]);
  }
}

export class Tree {
  #root: OwnedNode;
  #owner: object = {};
  readonly #counter: GenerationCounter;
  readonly #observe: PermissionObserver;

  /** @param frozenRoot as `freeze` gave it; this tree's changes do not show in it. */
  constructor(frozenRoot: Node, counter: GenerationCounter, observe: PermissionObserver) {
    this.#root = frozenRoot as OwnedNode;
    this.#counter = counter;
    this.#observe = observe;
  }

  static emptyRoot(permissions: Permissions): Node {
    const root: OwnedNode = {
      owner: {}, value: NO_VALUE, permissions, children: NO_CHILDREN, childListBytes: 0, dataGeneration: 0,
      childrenGeneration: 0,
    };
    return root;
  }

  /**
   * A frozen node with all below it, that is in no tree.
   * @param nodes parents first; paths relative to the first one's, which is ''
   * @returns undefined when there are none, one is there twice, or before its parent
   */
  static frozen(nodes: Iterable<PlainNode>, counter: GenerationCounter): Node | undefined {
    const owner = {};
    const made = new Map<string, OwnedNode>();
    // Most nodes have the parent that the one before them has.
    let parentAt: string | undefined;
    let parent: OwnedNode | undefined;
    for (const { path, value, permissions } of nodes) {
      const above = path.slice(0, Math.max(0, path.lastIndexOf('/')));
      if (above !== parentAt || parent === undefined) parent = made.get(parentAt = above);
      if (made.has(path) || (parent === undefined) !== (path === '')) return undefined;
      const generation = ++counter.last;
      const node: OwnedNode = {
        owner, value, permissions, children: NO_CHILDREN, childListBytes: 0, dataGeneration: generation,
        childrenGeneration: generation,
      };
      made.set(path, node);
      if (parent === undefined) continue;
      const name = leafName(path);
      if (parent.children === NO_CHILDREN) parent.children = new Map();
      parent.children.set(name, node);
      parent.childListBytes += name.length + 1;
    }
    return made.get('');
  }

  /** The tree as it is now, for ever. */
  freeze(): Node {
    this.#owner = {};
    return this.#root;
  }

  get(path: string): Node | undefined {
    return getNode(this.#root, path);
  }

  /** Sets the value, and makes the node and its missing ancestors with what `permissionsFor` makes of the parent's. */
  write(path: string, value: Uint8Array, permissionsFor: (parent: Permissions) => Permissions): void {
    let node = this.#ownRoot();
    let at = '/';
    for (const name of pathNames(path)) {
      at = childPath(at, name);
      node = node.children.has(name)
        ? this.#ownChild(node, name)
        : this.#addChild(node, name, at, permissionsFor(node.permissions));
    }
    node.value = value;
    node.dataGeneration = ++this.#counter.last;
  }

  /** @param path of a node that exists. */
  setPermissions(path: string, permissions: Permissions): void {
    const node = this.#ownPath(path);
    this.#observe(path, node.permissions, permissions);
    node.permissions = permissions;
    node.dataGeneration = ++this.#counter.last;
  }

  /** @param path of a node that exists, not the root. Returns what was cut off. */
  remove(path: string): Node {
    const parent = this.#ownPath(parentPath(path));
    const name = leafName(path);
    const removed = parent.children.get(name);
    assert(removed !== undefined, 'only a node that exists is removed');
    parent.children.delete(name);
    parent.childListBytes -= name.length + 1;
    parent.childrenGeneration = ++this.#counter.last;
    for (const [at, node] of walk(removed, path)) this.#observe(at, node.permissions, undefined);
    return removed;
  }

  /** Puts a copy of a frozen node with all below it at a path where nothing is; its parent exists. */
  graft(path: string, frozen: Node, permissionsOf: (node: Node) => Permissions): void {
    const parent = this.#ownPath(parentPath(path));
    const name = leafName(path);
    assert(!parent.children.has(name), 'a node is grafted where one is');
    if (parent.children === NO_CHILDREN) parent.children = new Map();
    parent.childListBytes += name.length + 1;
    parent.childrenGeneration = ++this.#counter.last;
    // Only nodes with children wait here: nearly all are leaves.
    const pending: { at: string; node: Node; copy: OwnedNode }[] = [];
    const copy = (at: string, node: Node): OwnedNode => {
      const generation = ++this.#counter.last;
      const made: OwnedNode = {
        owner: this.#owner, value: node.value, permissions: permissionsOf(node), children: NO_CHILDREN,
        childListBytes: node.childListBytes, dataGeneration: generation, childrenGeneration: generation,
      };
      this.#observe(at, undefined, made.permissions);
      if (node.children.size > 0) pending.push({ at, node, copy: made });
      return made;
    };
    parent.children.set(name, copy(path, frozen));
    for (let next = pending.pop(); next !== undefined; next = pending.pop()) {
      const children = next.copy.children = new Map<string, OwnedNode>();
      for (const [child, node] of next.node.children) children.set(child, copy(childPath(next.at, child), node));
    }
  }

  #addChild(parent: OwnedNode, name: string, path: string, permissions: Permissions): OwnedNode {
    const generation = ++this.#counter.last;
    const child: OwnedNode = {
      owner: this.#owner, value: NO_VALUE, permissions, children: NO_CHILDREN, childListBytes: 0,
      dataGeneration: generation, childrenGeneration: generation,
    };
    if (parent.children === NO_CHILDREN) parent.children = new Map();
    parent.children.set(name, child);
    parent.childListBytes += name.length + 1;
    parent.childrenGeneration = generation;
    this.#observe(path, undefined, permissions);
    return child;
  }

  #ownPath(path: string): OwnedNode {
    let node = this.#ownRoot();
    for (const name of pathNames(path)) node = this.#ownChild(node, name);
    return node;
  }

  #ownRoot(): OwnedNode {
    if (this.#root.owner !== this.#owner) this.#root = this.#copy(this.#root);
    return this.#root;
  }

  #ownChild(parent: OwnedNode, name: string): OwnedNode {
    const child = parent.children.get(name);
    assert(child !== undefined, 'only a node that exists is changed');
    if (child.owner === this.#owner) return child;
    const own = this.#copy(child);
    parent.children.set(name, own);
    return own;
  }

  #copy(node: OwnedNode): OwnedNode {
    const children = node.children.size === 0 ? NO_CHILDREN : new Map(node.children);
    return { ...node, owner: this.#owner, children };
  }
}
