// What the requests do to a tree: checks of permission and quota, then one change. The same code serves the store
// itself and a transaction; the surface it works on decides whether touched paths are remembered and what a change sets
// off. Refusals are XsErrors with the errno that Xen's store gives.

import { XsError } from './errors.ts';
import { parentPath, pathNames } from './path.ts';
import { ACCESS_READ, ACCESS_WRITE, accessOf, isOwner, ownerOf } from './permissions.ts';
import type { Actor, Permissions } from './permissions.ts';
import { exceeds } from './quota.ts';
import type { Quota } from './quota.ts';
import { walk } from './tree.ts';
import type { Node, Tree } from './tree.ts';

/** Aspects of a node that an operation depends on or changes. */
export const TOUCH_DATA = 1;
export const TOUCH_CHILDREN = 2;

/** One change to a tree, permitted and complete: it can be applied again elsewhere. */
export type Change =
  | {
    readonly type: 'write'; readonly path: string; readonly value: Uint8Array;
    /** Owner of the nodes that come to be; undefined to inherit the parent's owner. */
    readonly creatorId: number | undefined;
  }
  | { readonly type: 'remove'; readonly path: string }
  /** A copy of a frozen node with all below it, where nothing is. */
  | {
    readonly type: 'graft'; readonly path: string; readonly node: Node;
    readonly permissionsOf: (node: Node) => Permissions;
  }
  | { readonly type: 'permissions'; readonly path: string; readonly permissions: Permissions };

export interface Surface {
  readonly tree: Tree;
  /** Notes that the outcome depends on this path. ENOSPC above the client's bound. */
  touch(path: string, aspects: number): void;
  apply(change: Change): void;
  /** Nodes that the domain owns, as seen on this surface. */
  ownedNodes(domainId: number): number;
}

export interface Client extends Actor {
  readonly quota: Quota;
}

export function applyToTree(tree: Tree, change: Change): Node | undefined {
  switch (change.type) {
    case 'write': {
      const { creatorId } = change;
      tree.write(change.path, change.value, (parent) =>
        creatorId === undefined ? parent : [{ ...parent[0]!, domainId: creatorId }, ...parent.slice(1)]);
      return undefined;
    }
    case 'remove': return tree.remove(change.path);
    case 'graft': {
      tree.graft(change.path, change.node, change.permissionsOf);
      return undefined;
    }
    case 'permissions': {
      tree.setPermissions(change.path, change.permissions);
      return undefined;
    }
  }
}

interface Missing {
  /** The nearest ancestor that exists. */
  readonly ancestor: Node;
  /** How many nodes a write would make. */
  readonly missingNodes: number;
  /** Name of the first of them. */
  readonly firstName: string;
}

/** Touches all that the absence of `path` and the making of it depend on. */
function nearest(surface: Surface, path: string): Missing {
  const names = pathNames(path);
  let ancestor = surface.tree.get('/')!;
  let depth = 0;
  for (let next = ancestor.children.get(names[0]!); next !== undefined; next = ancestor.children.get(names[depth]!)) {
    ancestor = next;
    depth++;
  }
  let at = path;
  for (let level = names.length; level > depth; level--) {
    at = parentPath(at);
    surface.touch(at, TOUCH_DATA);
  }
  return { ancestor, missingNodes: names.length - depth, firstName: names[depth]! };
}

/** The node, or what there is instead. EACCES unless the actor has the access there: absence is told to no stranger. */
function find(surface: Surface, client: Client, path: string, access: number, aspects: number): Node | Missing {
  surface.touch(path, aspects);
  const node = surface.tree.get(path);
  const missing = node === undefined ? nearest(surface, path) : undefined;
  const { permissions } = node ?? missing!.ancestor;
  if ((accessOf(client, permissions) & access) !== access) throw new XsError('EACCES');
  return node ?? missing!;
}

const isMissing = (found: Node | Missing): found is Missing => 'ancestor' in found;

function existing(surface: Surface, client: Client, path: string, access: number, aspects: number): Node {
  const found = find(surface, client, path, access, aspects);
  if (isMissing(found)) throw new XsError('ENOENT');
  return found;
}

export function read(surface: Surface, client: Client, path: string): Uint8Array {
  return existing(surface, client, path, ACCESS_READ, TOUCH_DATA).value;
}

/** Both aspects are touched: the caller sees the list and, in DIRECTORY_PART, a count that covers the whole node. */
export function directory(surface: Surface, client: Client, path: string): Node {
  return existing(surface, client, path, ACCESS_READ, TOUCH_DATA | TOUCH_CHILDREN);
}

export function getPermissions(surface: Surface, client: Client, path: string): Permissions {
  return existing(surface, client, path, ACCESS_READ, TOUCH_DATA).permissions;
}

function checkRoomFor(surface: Surface, client: Client, missing: Missing): void {
  const { ancestor, missingNodes, firstName } = missing;
  const ancestorBytes = ancestor.value.length + ancestor.childListBytes + firstName.length + 1;
  if (exceeds(ancestorBytes, client.quota['node-size'])) throw new XsError('ENOSPC');
  const owned = surface.ownedNodes(client.domainId) + missingNodes;
  if (exceeds(owned, client.quota.nodes)) throw new XsError('ENOSPC');
}

const creatorOf = (client: Client) => (client.privileged ? undefined : client.domainId);

/** @param value is kept, not copied. */
export function write(surface: Surface, client: Client, path: string, value: Uint8Array): void {
  const found = find(surface, client, path, ACCESS_WRITE, TOUCH_DATA);
  if (!client.privileged) {
    const bytes = value.length + (isMissing(found) ? 0 : found.childListBytes);
    if (exceeds(bytes, client.quota['node-size'])) throw new XsError('ENOSPC');
    if (isMissing(found)) checkRoomFor(surface, client, found);
  }
  surface.apply({ type: 'write', path, value, creatorId: creatorOf(client) });
}

export function makeDirectory(surface: Surface, client: Client, path: string): void {
  const found = find(surface, client, path, ACCESS_WRITE, TOUCH_DATA);
  if (!isMissing(found)) return;
  if (!client.privileged) checkRoomFor(surface, client, found);
  surface.apply({ type: 'write', path, value: new Uint8Array(0), creatorId: creatorOf(client) });
}

export function remove(surface: Surface, client: Client, path: string): void {
  if (path === '/') throw new XsError('EINVAL');
  const found = find(surface, client, path, ACCESS_WRITE, TOUCH_DATA | TOUCH_CHILDREN);
  if (isMissing(found)) {
    if (found.missingNodes > 1) throw new XsError('ENOENT');
    return;
  }
  // Whatever is below goes too, so the outcome depends on all of it.
  for (const [below] of walk(found, path)) surface.touch(below, TOUCH_DATA | TOUCH_CHILDREN);
  surface.apply({ type: 'remove', path });
}

export function setPermissions(surface: Surface, client: Client, path: string, permissions: Permissions): void {
  const node = existing(surface, client, path, ACCESS_WRITE, TOUCH_DATA);
  checkNewPermissions(client, node.permissions, permissions);
  surface.apply({ type: 'permissions', path, permissions });
}

export function checkNewPermissions(client: Client, before: Permissions, after: Permissions): void {
  if (client.privileged) return;
  if (exceeds(after.length, client.quota.permissions)) throw new XsError('ENOSPC');
  if (!isOwner(client, before)) throw new XsError('EACCES');
  if (ownerOf(before) !== ownerOf(after)) throw new XsError('EPERM');
}
