// Quotas: what an unprivileged domain may take. The names are those of GET_QUOTA; 0 switches a check off. A domain has
// the store's values, but for those that were set for it.

import { XENSTORE_REL_PATH_MAX } from '../abi/xenstore-wire.ts';

/** Xen's defaults where Xen has the quota. */
export const DEFAULT_QUOTA = {
  /** Nodes owned. */
  'nodes': 1000,
  /** Watches set. */
  'watches': 128,
  /** Transactions open at a time. */
  'transactions': 10,
  /** Replies not yet taken by the client, above which it is not read from. */
  'outstanding': 20,
  /** Paths that one transaction may touch. */
  'transaction-nodes': 1024,
  /** Bytes of changes that all of a client's open transactions may hold. */
  'transaction-bytes': 1048576,
  /** Value and list of children of one node, in bytes. */
  'node-size': 2048,
  /** Entries in the permissions of one node. */
  'permissions': 5,
  /** Bytes of a path, without /local/domain/<domid>/. */
  'path-max': XENSTORE_REL_PATH_MAX,
};

export type QuotaName = keyof typeof DEFAULT_QUOTA;
export type Quota = Record<QuotaName, number>;

export const QUOTA_NAMES = Object.keys(DEFAULT_QUOTA) as QuotaName[];
export const isQuotaName = (name: string): name is QuotaName => Object.hasOwn(DEFAULT_QUOTA, name);

/** Whether `amount` is more than the quota allows. */
export const exceeds = (amount: number, limit: number) => limit !== 0 && amount > limit;
