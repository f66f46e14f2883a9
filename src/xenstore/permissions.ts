// Permissions of a node: a list whose first entry names the owner and, in its access, what any domain not listed may
// do; each further entry says what one domain may do. On the wire `n5`, `r5`, `w5`, `b5`: none, read, write, both.

import { parseDecimal } from './bytes.ts';
import { XsError } from './errors.ts';

export const ACCESS_NONE = 0;
export const ACCESS_READ = 1;
export const ACCESS_WRITE = 2;

export interface Permission {
  readonly domainId: number;
  /** ACCESS_READ | ACCESS_WRITE. */
  readonly access: number;
}

/** Never empty; [0] is the owner. */
export type Permissions = readonly Permission[];

/** On whose behalf something is asked. */
export interface Actor {
  readonly domainId: number;
  /** The toolstack: may do everything, and no quota binds it. */
  readonly privileged: boolean;
  /** Set by SET_TARGET: this domain also has what the target has. */
  readonly targetId: number | undefined;
}

const LETTERS = ['n', 'r', 'w', 'b'];
const MAX_DOMAIN_ID = 0xffff;

export const ownerOf = (permissions: Permissions) => permissions[0]!.domainId;

export function isOwner(actor: Actor, permissions: Permissions): boolean {
  const owner = ownerOf(permissions);
  return actor.privileged || owner === actor.domainId || owner === actor.targetId;
}

export function accessOf(actor: Actor, permissions: Permissions): number {
  if (isOwner(actor, permissions)) return ACCESS_READ | ACCESS_WRITE;
  for (let i = 1; i < permissions.length; i++) {
    const { domainId, access } = permissions[i]!;
    if (domainId === actor.domainId || domainId === actor.targetId) return access;
  }
  return permissions[0]!.access;
}

export const formatPermission = ({ domainId, access }: Permission) => `${LETTERS[access]}${domainId}`;

function parsePermission(text: string): Permission {
  const access = LETTERS.indexOf(text.slice(0, 1));
  const domainId = parseDecimal(text.slice(1), MAX_DOMAIN_ID);
  if (access < 0 || domainId === undefined) throw new XsError('EINVAL');
  return { domainId, access };
}

export function parsePermissions(texts: readonly string[]): Permissions {
  if (texts.length === 0) throw new XsError('EINVAL');
  return texts.map(parsePermission);
}
