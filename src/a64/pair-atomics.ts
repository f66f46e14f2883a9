// Sixteen bytes at once: Wasm's atomics end at eight, so the rows for pairs of 64-bit registers share a lock.

import { atomicRmw, i32, i64 } from '../wasm/scalar.ts';
import type { Address, I64 } from '../wasm/types.ts';
import type { Machine } from './machine.ts';

/** A host address as it is recorded in 64-bit state. */
export function widened(address: Address): I64 {
  return address.type === 'i32' ? i64.extendI32U(address) : address;
}

/**
 * Compares 16 bytes at a host address (pinned, as are the expected values) with what is expected and, if equal, stores
 * the replacement. Gives the old values, pinned. Atomic towards its like; nothing in between can fault or leave.
 */
export function pairCompareAndSwap(
  m: Machine, host: Address, expected: readonly [I64, I64], replacement: readonly [I64, I64],
): [I64, I64] {
  const { f } = m;
  const lock = m.pairLock();
  const low = f.local('i64');
  const high = f.local('i64');
  f.loop(again => f.brIf(again, i64.ne(atomicRmw.xchg[2]!(lock, i64.const(1)), i64.const(0))));
  f.set(low, i64.atomicLoad(host));
  f.set(high, i64.atomicLoad(host, 8));
  f.if(i32.and(i64.eq(low, expected[0]), i64.eq(high, expected[1])), () => {
    f.do(i64.atomicStore(host, replacement[0]));
    f.do(i64.atomicStore(host, replacement[1], 8));
  });
  f.do(i64.atomicStore32(lock, i64.const(0)));
  return [low, high];
}
