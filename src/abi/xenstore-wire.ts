// The xenstore wire protocol and its ring page, as data: Xen's public header io/xs_wire.h, with the ring's fields and
// error values as docs/misc/xenstore-ring.txt describes them. All numbers are little-endian.
//
//   message:  0      4        8       12      16
//             +------+--------+-------+-------+---------------------+
//             | type | req_id | tx_id | len   | payload, len bytes  |
//             +------+--------+-------+-------+---------------------+
//
//   page:     0        1024     2048       2056       2064              2068         2072
//             +--------+--------+----------+----------+-----------------+------------+-------+
//             | req[]  | rsp[]  | req_cons | rsp_cons | server_features | connection | error |
//             |        |        | req_prod | rsp_prod |                 |            |       |
//             +--------+--------+----------+----------+-----------------+------------+-------+

import { array, struct, u32, u8 } from './struct.ts';

/** `enum xsd_sockmsg_type`. 20 was XS_RESTRICT and is no longer a request. */
export const XS_TYPE = {
  CONTROL: 0,
  DIRECTORY: 1,
  READ: 2,
  GET_PERMS: 3,
  WATCH: 4,
  UNWATCH: 5,
  TRANSACTION_START: 6,
  TRANSACTION_END: 7,
  INTRODUCE: 8,
  RELEASE: 9,
  GET_DOMAIN_PATH: 10,
  WRITE: 11,
  MKDIR: 12,
  RM: 13,
  SET_PERMS: 14,
  WATCH_EVENT: 15,
  ERROR: 16,
  IS_DOMAIN_INTRODUCED: 17,
  RESUME: 18,
  SET_TARGET: 19,
  RESET_WATCHES: 21,
  DIRECTORY_PART: 22,
  GET_FEATURE: 23,
  SET_FEATURE: 24,
  GET_QUOTA: 25,
  SET_QUOTA: 26,
} as const;

/** `xsd_errors`: an error goes over the wire as the name of its errno, in this closed list. */
export const XS_ERRORS = [
  'EINVAL', 'EACCES', 'EEXIST', 'EISDIR', 'ENOENT', 'ENOMEM', 'ENOSPC', 'EIO', 'ENOTEMPTY', 'ENOSYS', 'EROFS', 'EBUSY',
  'EAGAIN', 'EISCONN', 'E2BIG', 'EPERM',
] as const;
export type XsErrno = (typeof XS_ERRORS)[number];

export const XSD_SOCKMSG = struct('xsd_sockmsg', { type: u32, req_id: u32, tx_id: u32, len: u32 }, { sizeBytes: 16 });

/** A longer payload, in either direction, ends the connection. */
export const XENSTORE_PAYLOAD_MAX = 4096;
/** Longest absolute and longest relative path, in bytes. */
export const XENSTORE_ABS_PATH_MAX = 3072;
export const XENSTORE_REL_PATH_MAX = 2048;

export const XENSTORE_RING_SIZE = 1024;

export const XENSTORE_DOMAIN_INTERFACE = struct('xenstore_domain_interface', {
  req: array(u8, XENSTORE_RING_SIZE),
  rsp: array(u8, XENSTORE_RING_SIZE),
  req_cons: u32,
  req_prod: u32,
  rsp_cons: u32,
  rsp_prod: u32,
  server_features: u32,
  connection: u32,
  error: u32,
}, { sizeBytes: 2076 });

/** Bits of `server_features`. */
export const XENSTORE_SERVER_FEATURE = {
  /** The guest may reset its ring through the `connection` field. */
  RECONNECTION: 1,
  /** The `error` field is present. */
  ERROR: 2,
  /** WATCH takes a depth. */
  WATCHDEPTH: 4,
} as const;

/** Values of `connection`. */
export const XENSTORE_CONNECTED = 0;
export const XENSTORE_RECONNECT = 1;

/** Values of `error`: why the server stopped serving this ring. */
export const XENSTORE_ERROR = {
  NONE: 0,
  COMM: 1,
  RINGIDX: 2,
  PROTO: 3,
} as const;
