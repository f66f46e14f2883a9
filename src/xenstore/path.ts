// Paths: absolute, without a trailing slash (but for the root), checked once at the edge. Relative ones are taken from
// the caller's home, /local/domain/<domid>. Special names begin with @ and are no nodes of the tree.

import { XENSTORE_ABS_PATH_MAX } from '../abi/xenstore-wire.ts';
import { XsError } from './errors.ts';

/** Home of a domain in the tree, as GET_DOMAIN_PATH gives it. */
export const domainPath = (domainId: number) => `/local/domain/${domainId}`;

const VALID_PATH = /^[A-Za-z0-9\-/_@]+$/;
const DOMAIN_HOME = /^\/local\/domain\/[0-9]{1,5}\//;

export const isSpecial = (path: string) => path.startsWith('@');
export const isRelative = (path: string) => !path.startsWith('/') && !path.startsWith('@');

/**
 * The absolute form of a path that a client gave. EINVAL for anything that is no path.
 * @param maxBytes bound for what follows the domain's home, or for the whole path if it is elsewhere; 0 for none.
 */
export function canonicalPath(given: string, homeDomainId: number, maxBytes: number, allowSpecial = false): string {
  if (!VALID_PATH.test(given) || (isSpecial(given) && !allowSpecial)) throw new XsError('EINVAL');
  const path = isRelative(given) ? `${domainPath(homeDomainId)}/${given}` : given;
  if ((path.endsWith('/') && path !== '/') || path.includes('//')) throw new XsError('EINVAL');
  if (path.length > XENSTORE_ABS_PATH_MAX) throw new XsError('EINVAL');
  const homeLength = DOMAIN_HOME.exec(path)?.[0].length ?? 0;
  if (maxBytes !== 0 && path.length - homeLength > maxBytes) throw new XsError('EINVAL');
  return path;
}

/** @param path absolute, not the root. */
export function parentPath(path: string): string {
  const slash = path.lastIndexOf('/');
  return slash === 0 ? '/' : path.slice(0, slash);
}

export const leafName = (path: string) => path.slice(path.lastIndexOf('/') + 1);
export const childPath = (parent: string, name: string) => (parent === '/' ? `/${name}` : `${parent}/${name}`);
/** Names from the root down; empty for the root. */
export const pathNames = (path: string) => (path === '/' ? [] : path.slice(1).split('/'));
