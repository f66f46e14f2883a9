// A disk, lent to the threads that serve its ring (lanes/lane.ts): its chain of files as it is, with the maps of its layers in
// memory that they share (abi/layer-map.ts). As long as it is lent the host neither writes to the disk nor changes its
// chain; what needs that takes the loan back first. What the guest has written then is in the topmost file and map, where
// the host's own writes are, and lasts when the host has flushed it.

import { CHAIN, CHAIN_LEVEL, CHAIN_LEVELS_MAX } from '../../abi/layer-map.ts';
import type { Borrower, LentFile } from '../../lanes/lending.ts';
import type { MapPages } from '../../lanes/map-pages.ts';
import type { ChainLoan, DiskNode } from './chain.ts';
import { Layer } from './layer.ts';

export interface LoanParts {
  readonly node: DiskNode;
  /** Whether the node itself is written to. */
  readonly isTop: boolean;
  readonly sizeBytes: number;
  readonly isReadOnly: boolean;
  /** Nothing of it is to last. */
  readonly isVolatile: boolean;
  readonly borrower: Borrower;
  readonly ended: () => void;
}

export class DiskLoan implements ChainLoan {
  readonly file: LentFile;
  /** One file, which is the disk whoever writes to it. */
  readonly isPlain: boolean;
  readonly #borrower: Borrower;
  readonly #end = Promise.withResolvers<void>();

  private constructor({ borrower, isTop, isReadOnly, isVolatile, ended }: LoanParts, nodes: readonly DiskNode[], file: LentFile) {
    this.#borrower = borrower;
    this.isPlain = file.chain === 0 && (isTop || isReadOnly);
    this.file = {
      ...file, isOwn: !isReadOnly, isVolatile,
      giveBack: (wasWritten, isLost) => {
        file.giveBack(wasWritten, isLost);
        for (const node of nodes) node.loans.delete(this);
        ended();
        this.#end.resolve();
      },
    };
    for (const node of nodes) node.loans.add(this);
  }

  /** @returns undefined when it cannot be lent now */
  static begin(parts: LoanParts): DiskLoan | undefined {
    const nodes: DiskNode[] = [];
    for (let node: DiskNode | undefined = parts.node; node !== undefined; node = node.below) nodes.push(node);
    if (nodes.length > CHAIN_LEVELS_MAX || nodes.some(({ isChanging }) => isChanging)) return undefined;
    const file = parts.node.store instanceof Layer ? lendChain(parts, nodes) : lendRaw(parts);
    return file === undefined ? undefined : new DiskLoan(parts, nodes, file);
  }

  takeBack(): Promise<void> {
    this.#borrower.takeBack();
    return this.#end.promise;
  }
}

function lendRaw({ node: { store }, isTop, sizeBytes }: LoanParts): LentFile | undefined {
  if (sizeBytes > store.sizeBytes) return undefined;
  const file = store.file.lend();
  return file === undefined ? undefined : { ...file, isWritable: file.isWritable && isTop };
}

function lendChain({ isTop, sizeBytes, borrower: { maps } }: LoanParts, nodes: readonly DiskNode[]): LentFile | undefined {
  const page = maps.take();
  if (page === 0) return undefined;
  const heads = nodes.map(({ store }) => (store instanceof Layer ? store.share(maps) : undefined));
  const files: LentFile[] = [];
  const giveBack = (wasWritten: boolean, isLost = false): void => {
    files.forEach((file, level) => file.giveBack(level === 0 && wasWritten, level === 0 && isLost));
    maps.giveBack(page);
  };
  for (const [level, { store: { file } }] of nodes.entries()) {
    const lent = heads[level] === 0 ? undefined : file.lend();
    if (lent === undefined) break;
    files.push(lent);
  }
  if (files.length < nodes.length) {
    giveBack(false);
    return undefined;
  }
  describe(maps, page, nodes.map(({ store }, level) => ({ fd: files[level]!.fd, head: heads[level] ?? 0, sizeBytes: store.sizeBytes })));
  const top = nodes[0]!.store as Layer;
  const isWritable = isTop && files[0]!.isWritable && top.isBegun;
  if (isWritable) top.lendMap();
  return {
    ...files[0]!, chain: page, alignBytes: Math.max(...files.map(({ alignBytes }) => alignBytes)), sizeBytes, isWritable,
    isLocal: files.every(({ isLocal }) => isLocal),
    giveBack: (wasWritten, isLost) => {
      if (isWritable) top.takeBack();
      giveBack(wasWritten, isLost);
    },
  };
}

function describe(maps: MapPages, page: number, levels: readonly { fd: number; head: number; sizeBytes: number }[]): void {
  const first = maps.wordOf(page);
  maps.u32[first + CHAIN.depth] = levels.length;
  for (const [i, { fd, head, sizeBytes }] of levels.entries()) {
    const at = first + CHAIN.levels + i * CHAIN_LEVEL.words;
    maps.u32[at + CHAIN_LEVEL.fd] = fd;
    maps.u32[at + CHAIN_LEVEL.head] = head;
    maps.f64[(at + CHAIN_LEVEL.sizeBytes) / 2] = sizeBytes;
  }
}
