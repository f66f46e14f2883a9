// DHCP server of a network (RFC 2131, 2132). It holds no state of its own: which address a card gets is decided when it
// is attached, or, for a guest's guests, by `leaseOf`. So it answers the same before and after a restore.
//
//   message │ op htype hlen hops │ xid │ secs flags │ ciaddr │ yiaddr │ siaddr │ giaddr │ chaddr (16) │
//           0                    4     8            12       16       20       24       28
//           │ sname (64) │ file (128) │ magic │ options: code length bytes …, 255
//           44           108          236     240

import { readMac, readU16, readU32, writeU32 } from './wire.ts';

export const DHCP_SERVER_PORT = 67;
export const DHCP_CLIENT_PORT = 68;

const FIXED_BYTES = 240;
const MAGIC = 0x6382_5363;
const BOOT_REQUEST = 1;
const BOOT_REPLY = 2;
const LEASE_SECONDS = 86_400;
const MIN_MESSAGE_BYTES = 300;

const OPTION_MASK = 1;
const OPTION_ROUTER = 3;
const OPTION_DNS = 6;
const OPTION_HOST_NAME = 12;
const OPTION_DOMAIN = 15;
const OPTION_MTU = 26;
const OPTION_BROADCAST = 28;
const OPTION_REQUESTED = 50;
const OPTION_LEASE = 51;
const OPTION_TYPE = 53;
const OPTION_SERVER = 54;
const OPTION_END = 255;

const DISCOVER = 1;
const OFFER = 2;
const REQUEST = 3;
const ACK = 5;
const NAK = 6;
const INFORM = 8;

/** What the server tells clients. */
export interface DhcpSettings {
  readonly server: number;
  readonly mask: number;
  readonly broadcast: number;
  readonly router: number;
  readonly dns: number;
  readonly mtuBytes: number;
  readonly domain: string;
}

export interface Lease {
  readonly address: number;
  readonly hostName?: string;
}

export interface DhcpReply {
  readonly message: Uint8Array;
  /** Where it goes: the client's address, or everybody. */
  readonly broadcast: boolean;
  readonly address: number;
}

/**
 * The answer to a client's message, or undefined for none. `sourceMac` is the frame's sender: a client asks for itself
 * alone.
 */
export function answerDhcp(
  message: Uint8Array, sourceMac: number, settings: DhcpSettings, leaseOf: (mac: number) => Lease | undefined,
): DhcpReply | undefined {
  if (message.length < FIXED_BYTES || message[0] !== BOOT_REQUEST) return undefined;
  if (message[1] !== 1 || message[2] !== 6 || readU32(message, 236) !== MAGIC) return undefined;
  if (readMac(message, 28) !== sourceMac) return undefined;
  const options = parseOptions(message);
  const type = options.get(OPTION_TYPE)?.[0];
  const server = addressOption(options, OPTION_SERVER);
  const lease = leaseOf(sourceMac);
  if (lease === undefined || (server !== undefined && server !== settings.server)) return undefined;
  const clientAddress = readU32(message, 12);
  switch (type) {
    case DISCOVER:
      return reply(message, OFFER, settings, lease, true);
    case REQUEST: {
      const wanted = addressOption(options, OPTION_REQUESTED) ?? clientAddress;
      return reply(message, wanted === lease.address ? ACK : NAK, settings, lease, true);
    }
    case INFORM:
      return clientAddress === lease.address ? reply(message, ACK, settings, lease, false) : undefined;
    default:
      return undefined; // DECLINE and RELEASE change nothing: the address stays the card's
  }
}

function parseOptions(message: Uint8Array): Map<number, Uint8Array> {
  const options = new Map<number, Uint8Array>();
  for (let at = FIXED_BYTES; at < message.length && message[at] !== OPTION_END;) {
    if (message[at] === 0) {
      at++;
      continue;
    }
    const length = message[at + 1] ?? 0;
    if (at + 2 + length > message.length) break;
    options.set(message[at]!, message.subarray(at + 2, at + 2 + length));
    at += 2 + length;
  }
  return options;
}

function addressOption(options: Map<number, Uint8Array>, code: number): number | undefined {
  const bytes = options.get(code);
  return bytes?.length === 4 ? readU32(bytes, 0) : undefined;
}

function reply(
  request: Uint8Array, type: number, settings: DhcpSettings, lease: Lease, gives: boolean,
): DhcpReply {
  const options: number[] = [];
  const add = (code: number, bytes: readonly number[]): void => {
    options.push(code, bytes.length, ...bytes);
  };
  add(OPTION_TYPE, [type]);
  add(OPTION_SERVER, octets(settings.server));
  if (type !== NAK) {
    if (gives) add(OPTION_LEASE, octets(LEASE_SECONDS));
    add(OPTION_MASK, octets(settings.mask));
    add(OPTION_BROADCAST, octets(settings.broadcast));
    add(OPTION_ROUTER, octets(settings.router));
    add(OPTION_DNS, octets(settings.dns));
    add(OPTION_MTU, [settings.mtuBytes >> 8, settings.mtuBytes & 0xff]);
    add(OPTION_DOMAIN, [...Buffer.from(settings.domain, 'latin1')]);
    if (lease.hostName !== undefined) add(OPTION_HOST_NAME, [...Buffer.from(lease.hostName, 'latin1')]);
  }
  options.push(OPTION_END);
  const message = new Uint8Array(Math.max(MIN_MESSAGE_BYTES, FIXED_BYTES + options.length));
  message.set(request.subarray(0, 44)); // xid, flags, giaddr, chaddr
  message[0] = BOOT_REPLY;
  message[3] = 0;
  const given = type !== NAK && gives ? lease.address : 0;
  if (type === NAK) writeU32(message, 12, 0);
  writeU32(message, 16, given);
  writeU32(message, 20, type === NAK ? 0 : settings.server);
  writeU32(message, 236, MAGIC);
  message.set(options, FIXED_BYTES);
  const broadcast = type === NAK || (gives && (readU16(request, 10) & 0x8000) !== 0);
  return { message, broadcast, address: lease.address };
}

function octets(word: number): number[] {
  return [word >>> 24, (word >>> 16) & 0xff, (word >>> 8) & 0xff, word & 0xff];
}
