// DecodeBitMasks (Arm ARM shared pseudocode): bitmask immediates of logical instructions.

/**
 * @returns the 64-bit pattern, or undefined for a reserved encoding. A 32-bit instruction takes the low word.
 */
export function decodeBitMasks(
  immN: number, imms: number, immr: number,
): bigint | undefined {
  const length = 31 - Math.clz32((immN << 6) | (~imms & 63));
  if (length < 1) return undefined;
  const levels = (1 << length) - 1;
  if ((imms & levels) === levels) return undefined;
  const s = imms & levels;
  const r = BigInt(immr & levels);
  const elementBits = BigInt(1 << length);
  const element = (1n << BigInt(s + 1)) - 1n;
  const rotated = BigInt.asUintN(Number(elementBits), (element >> r) | (element << (elementBits - r)));
  let wmask = 0n;
  for (let at = 0n; at < 64n; at += elementBits) wmask |= rotated << at;
  return wmask;
}
