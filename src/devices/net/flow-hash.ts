// Which frames belong together: those of one connection have the same number.

const ETHERNET_HEADER_BYTES = 14;
const IPV4 = 0x0800;
const IPV6 = 0x86dd;
const PROTOCOL_TCP = 6;
const PROTOCOL_UDP = 17;

/** Of addresses, and the ports of TCP and UDP; of any other frame, 0. Fragments go by their addresses. */
export function flowHash(frame: Uint8Array): number {
  if (frame.length < ETHERNET_HEADER_BYTES + 40) return 0;
  const etherType = (frame[12]! << 8) | frame[13]!;
  const ip = ETHERNET_HEADER_BYTES;
  if (etherType === IPV6) return mix(frame, ip + 8, ip + 40, 0) >>> 0;
  if (etherType !== IPV4) return 0;
  const hash = mix(frame, ip + 12, ip + 20, 0);
  const isFragment = ((frame[ip + 6]! << 8 | frame[ip + 7]!) & 0x3fff) !== 0;
  const protocol = frame[ip + 9]!;
  if (isFragment || (protocol !== PROTOCOL_TCP && protocol !== PROTOCOL_UDP)) return hash >>> 0;
  const transport = ip + (frame[ip]! & 15) * 4;
  return transport + 4 > frame.length ? hash >>> 0 : mix(frame, transport, transport + 4, hash) >>> 0;
}

/** FNV-1a with a last step that spreads it over the low bits. */
function mix(frame: Uint8Array, start: number, end: number, seed: number): number {
  let hash = 0x811c9dc5 ^ seed;
  for (let at = start; at < end; at++) hash = Math.imul(hash ^ frame[at]!, 0x01000193);
  return hash ^ (hash >>> 15);
}
