// A part of the tree as it was at one moment, held by reference: frozen nodes never change, so taking one costs nothing,
// and putting it back costs what was changed since, because what is still the same node needs no look.

import type { Change } from './operations.ts';
import { childPath } from './path.ts';
import type { Permissions } from './permissions.ts';
import type { Node } from './tree.ts';

/** A frozen node with all below it. */
export type StoreSnapshot = Node;

interface Step {
  readonly path: string;
  readonly present: Node | undefined;
  readonly wanted: Node;
}

/**
 * What makes the tree at `path` what the snapshot says; parents first, and not recursive: a guest decides how deep it is.
 * @param present what is there now
 * @param domainIds in permissions, numbers to write for the ones in the snapshot
 */
export function changesToSnapshot(
  path: string, present: Node | undefined, wanted: StoreSnapshot, domainIds: ReadonlyMap<number, number>,
): Change[] {
  const changes: Change[] = [];
  const mapped = new Map<Permissions, Permissions>();
  const permissionsOf = (node: Node): Permissions => {
    if (domainIds.size === 0) return node.permissions;
    let permissions = mapped.get(node.permissions);
    if (permissions === undefined) {
      permissions = node.permissions.map(({ domainId, access }) =>
        ({ domainId: domainIds.get(domainId) ?? domainId, access }));
      mapped.set(node.permissions, permissions);
    }
    return permissions;
  };
  const pending: Step[] = [{ path, present, wanted }];
  for (let step = pending.pop(); step !== undefined; step = pending.pop()) {
    const { path: at, present: now, wanted: then } = step;
    if (now === then && domainIds.size === 0) continue;
    if (now === undefined) {
      changes.push({ type: 'graft', path: at, node: then, permissionsOf });
      continue;
    }
    const permissions = permissionsOf(then);
    if (!sameBytes(now.value, then.value)) {
      changes.push({ type: 'write', path: at, value: then.value, creatorId: undefined });
    }
    if (!samePermissions(now.permissions, permissions)) changes.push({ type: 'permissions', path: at, permissions });
    for (const name of now.children.keys()) {
      if (!then.children.has(name)) changes.push({ type: 'remove', path: childPath(at, name) });
    }
    for (const [name, child] of [...then.children].reverse()) {
      pending.push({ path: childPath(at, name), present: now.children.get(name), wanted: child });
    }
  }
  return changes;
}

function sameBytes(a: Uint8Array, b: Uint8Array): boolean {
  return a === b || (a.length === b.length && a.every((byte, i) => byte === b[i]));
}

function samePermissions(a: Permissions, b: Permissions): boolean {
  return a === b || (a.length === b.length && a.every(({ domainId, access }, i) =>
    domainId === b[i]!.domainId && access === b[i]!.access));
}
