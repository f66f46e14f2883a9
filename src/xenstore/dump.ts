// A part of the tree as JSON-able data, for images and forks: a flat list, parents first, so that a deep tree needs no
// recursion. Paths are relative to the part's root, '' for the root itself; bytes of values are characters 0 … 255.

import { bytesToString, stringToBytes } from './bytes.ts';
import { XsError } from './errors.ts';
import { childPath } from './path.ts';
import { formatPermission, parsePermissions } from './permissions.ts';
import type { Permissions } from './permissions.ts';
import { walk } from './tree.ts';
import type { Node, PlainNode } from './tree.ts';

export interface DumpedNode {
  readonly path: string;
  readonly value: string;
  /** As on the wire. */
  readonly permissions: readonly string[];
}
export type TreeDump = readonly DumpedNode[];

/** Below a root, names in a row; nothing is wrong with that if it is not very long. */
const PLAIN_PATH = /^[A-Za-z0-9\-_@]+(?:\/[A-Za-z0-9\-_@]+)*$/;
const PLAIN_CHARACTERS_MAX = 256;
const BYTE_MAX = 0xff;

/** Strings of a saved state come from a file: EINVAL if this is none, or no string of bytes. */
export function savedBytes(value: unknown): Uint8Array {
  if (typeof value !== 'string') throw new XsError('EINVAL');
  for (let i = 0; i < value.length; i++) if (value.charCodeAt(i) > BYTE_MAX) throw new XsError('EINVAL');
  return stringToBytes(value);
}

export function savedArray<T>(value: readonly T[]): readonly T[] {
  if (!Array.isArray(value) || value.some((one) => one === null || one === undefined)) throw new XsError('EINVAL');
  return value;
}

export function savedString(value: unknown): string {
  if (typeof value !== 'string') throw new XsError('EINVAL');
  return value;
}

export function dumpNodes(node: Node): TreeDump {
  return walk(node, '/').map(([path, { value, permissions }]) => ({
    path: path.slice(1), value: bytesToString(value), permissions: permissions.map(formatPermission),
  })).toArray();
}

/**
 * A dump's nodes, for `Tree.frozen`. The dump may come from a file: EINVAL if it is no dump.
 * @param root where they would be
 */
export function dumpedNodes(dump: TreeDump, root: string, canonical: (path: string) => string): PlainNode[] {
  // Nearly all nodes have one of a few lists.
  const known = new Map<string, Permissions>();
  const permissionsOf = (given: readonly string[]): Permissions => {
    for (const word of savedArray(given)) savedString(word);
    const key = given.join();
    let permissions = known.get(key);
    if (permissions === undefined) known.set(key, permissions = parsePermissions(given));
    return permissions;
  };
  return savedArray(dump).map((node) => {
    const path = savedString(node.path);
    const isPlain = path.length <= PLAIN_CHARACTERS_MAX && PLAIN_PATH.test(path);
    if (!isPlain && path !== '') canonical(childPath(root, path));
    return { path, value: savedBytes(node.value), permissions: permissionsOf(node.permissions) };
  });
}
