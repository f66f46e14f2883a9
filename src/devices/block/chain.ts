// Stores on top of each other, which together are the contents of a disk. A chain is named by its topmost node; chains of
// several disks and states may have nodes in common, and each node counts who needs it.

import { unlink } from 'node:fs/promises';
import { basename, dirname } from 'node:path';
import { assert } from '../../base/assert.ts';
import { bytesOf, slicePieces } from '../../lanes/pieces.ts';
import type { Pieces } from '../../lanes/pieces.ts';
import { Layer } from './layer.ts';
import type { BackingReference } from './layer-format.ts';
import { RUN } from './store.ts';
import type { BlockStore } from './store.ts';

/** The operator's file; one that a disk has made beside it, and that goes when it is of no use any more; one without a name. */
export type NodeOrigin = 'given' | 'own' | 'nameless';

/** A chain that other threads read, and write to at the top. */
export interface ChainLoan {
  /** Resolves when they do so no more. */
  takeBack(): Promise<void>;
}

/** A store in a chain. Lives until nobody uses it. */
export class DiskNode {
  #store: BlockStore;
  #below: DiskNode | undefined;
  #origin: NodeOrigin;
  #users = 0;
  /** Of the disks that have it, those that are lent. */
  readonly loans = new Set<ChainLoan>();
  /** The chain is being changed here: it cannot be lent. */
  isChanging = false;

  constructor(store: BlockStore, below: DiskNode | undefined, origin: NodeOrigin) {
    this.#store = store;
    this.#below = below;
    this.#origin = origin;
    below?.use();
  }

  get store(): BlockStore {
    return this.#store;
  }
  get below(): DiskNode | undefined {
    return this.#below;
  }
  get origin(): NodeOrigin {
    return this.#origin;
  }

  /** The store below has all that this one had, and takes its place; nobody else may be using that node. */
  async fall(): Promise<void> {
    const { store, origin } = this;
    const below = this.#below!;
    assert(below.users === 1, 'nobody else needs the store below as it was');
    this.#store = below.store;
    this.#origin = below.origin;
    this.#below = below.below;
    if (origin === 'own') await unlink(store.file.path).catch(() => {});
    await store.abandon();
  }

  get users(): number {
    return this.#users;
  }
  use(): void {
    this.#users++;
  }
  /** @param isObsolete nobody will look for its file either */
  async leave(isObsolete: boolean): Promise<void> {
    assert(this.#users > 0, 'a node is left by its users');
    if (--this.#users > 0) return;
    if (this.#origin === 'own' && isObsolete) await unlink(this.store.file.path).catch(() => {});
    // What nobody will open again needs no map.
    const isLast = this.origin === 'nameless' || (this.origin === 'own' && isObsolete);
    await (isLast ? this.store.abandon() : this.store.close());
    await this.below?.leave(isObsolete);
  }
}

/** Whether part of a chain would be lost with the process. */
export function isNameless(node: DiskNode): boolean {
  return node.origin === 'nameless' || (node.below !== undefined && isNameless(node.below));
}

export function bottomOf(node: DiskNode): DiskNode {
  return node.below === undefined ? node : bottomOf(node.below);
}

/** Starts to read a part of a disk from a chain. */
export function readFrom(node: DiskNode | undefined, pieces: Pieces, offset: number, reads: Promise<void>[]): void {
  const sizeBytes = bytesOf(pieces);
  const inside = node === undefined ? 0 : Math.max(0, Math.min(sizeBytes, node.store.sizeBytes - offset));
  if (inside < sizeBytes) for (const piece of slicePieces(pieces, inside, sizeBytes - inside)) piece.fill(0);
  if (inside === 0) return;
  for (const run of node!.store.runs(offset, inside)) {
    const part = run.sizeBytes === sizeBytes ? pieces : slicePieces(pieces, run.offset - offset, run.sizeBytes);
    if (run.kind === RUN.data) reads.push(node!.store.file.read(part, run.at));
    else if (run.kind === RUN.zero) for (const piece of part) piece.fill(0);
    else readFrom(node!.below, part, run.offset, reads);
  }
}

/** What a layer on top of a store says of it. @param folder of the layer */
export async function referenceTo(store: BlockStore, folder: string): Promise<BackingReference> {
  const { path } = store.file;
  const named = dirname(path) === folder ? basename(path) : path;
  if (store instanceof Layer) return { kind: 'layer', path: named, uuid: store.header.uuid, generation: store.header.generation };
  return { kind: 'raw', path: named, ...await store.file.identity() };
}
