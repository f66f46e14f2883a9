// The part of a CPU's state that one unprivileged instruction can see and change, as the differential tests hand it to
// QEMU and to Zazen, and the comparison of two of them.

/** Size of the scratch buffer that loads and stores under test may touch. */
export const SCRATCH_BYTES = 4096;

/** FPSR bits that A64 defines: QC, IDC, IXC, UFC, OFC, DZC, IOC. The others are RES0 or belong to AArch32. */
export const FPSR_MASK = 0x0800009f;

/** FPCR bits that the guest's feature set defines: AHP, DN, FZ, RMode. */
export const FPCR_MASK = 0x07c00000;

export interface CpuState {
  /** X0 to X30: 31 elements. */
  x: BigUint64Array;
  sp: bigint;
  /** As MRS reads it: N, Z, C, V in bits 31 to 28, as an unsigned number. */
  nzcv: number;
  fpcr: number;
  fpsr: number;
  /** V0 to V31 as 64 halves: element 2n holds bits 63:0 of Vn, element 2n + 1 bits 127:64. */
  v: BigUint64Array;
  /** Scratch memory, SCRATCH_BYTES long. */
  memory: Uint8Array;
}

export function emptyState(): CpuState {
  return {
    x: new BigUint64Array(31),
    sp: 0n,
    nzcv: 0,
    fpcr: 0,
    fpsr: 0,
    v: new BigUint64Array(64),
    memory: new Uint8Array(SCRATCH_BYTES),
  };
}

/** A copy that shares nothing with `state`. */
export function copyState(state: CpuState): CpuState {
  return { ...state, x: state.x.slice(), v: state.v.slice(), memory: state.memory.slice() };
}

/**
 * What differs between two states, one readable line each, in the order x, sp, flags, v, memory; empty if they agree.
 * Only defined bits of FPCR and FPSR count.
 */
export function diffStates(expected: CpuState, actual: CpuState): string[] {
  const lines: string[] = [];
  const compare = (name: string, want: string, got: string) => {
    if (want !== got) lines.push(`${name}: expected ${want}, got ${got}`);
  };
  for (let n = 0; n < 31; n++) compare(`x${n}`, hex64(expected.x[n]!), hex64(actual.x[n]!));
  compare('sp', hex64(expected.sp), hex64(actual.sp));
  compare('nzcv', describeNzcv(expected.nzcv), describeNzcv(actual.nzcv));
  compare('fpcr', describeFpcr(expected.fpcr), describeFpcr(actual.fpcr));
  compare('fpsr', describeFpsr(expected.fpsr), describeFpsr(actual.fpsr));
  for (let n = 0; n < 32; n++) compare(`v${n}`, hex128(expected.v, n), hex128(actual.v, n));
  lines.push(...diffMemory(expected.memory, actual.memory));
  return lines;
}

/** One line for each run of differing bytes, cut into pieces of 16. */
function diffMemory(expected: Uint8Array, actual: Uint8Array): string[] {
  const lines: string[] = [];
  for (let at = 0; at < SCRATCH_BYTES; at++) {
    if (expected[at] === actual[at]) continue;
    let end = at + 1;
    while (end < SCRATCH_BYTES && end < at + 16 && expected[end] !== actual[end]) end++;
    const show = (bytes: Uint8Array) => Buffer.from(bytes.subarray(at, end)).toString('hex');
    lines.push(`memory+0x${at.toString(16)}: expected bytes ${show(expected)}, got ${show(actual)}`);
    at = end - 1;
  }
  return lines;
}

function hex64(value: bigint): string {
  return '0x' + BigInt.asUintN(64, value).toString(16).padStart(16, '0');
}

/** High half first, halves separated as in a manual. */
function hex128(v: BigUint64Array, n: number): string {
  return `${hex64(v[2 * n + 1]!)}_${v[2 * n]!.toString(16).padStart(16, '0')}`;
}

function describeBits(value: number, names: readonly (readonly [string, number])[]): string {
  const set = names.filter(([, bit]) => (value >>> bit) & 1).map(([name]) => name);
  return set.length === 0 ? 'none' : set.join('+');
}

function describeNzcv(value: number): string {
  return describeBits(value, [['N', 31], ['Z', 30], ['C', 29], ['V', 28]]);
}

function describeFpsr(value: number): string {
  return describeBits(value, [['QC', 27], ['IDC', 7], ['IXC', 4], ['UFC', 3], ['OFC', 2], ['DZC', 1], ['IOC', 0]]);
}

function describeFpcr(value: number): string {
  const rounding = ['RN', 'RP', 'RM', 'RZ'][(value >>> 22) & 3]!;
  return `${rounding}+${describeBits(value, [['AHP', 26], ['DN', 25], ['FZ', 24]])}`;
}
