-- settle, version 1: corrects charges and renews or gives back permits. Same layout as admit.
--   gcra, cnt  c = units to add (negative gives back); a bucket that is gone stays gone
--   sem        c = id: give back;  renew  b = lease (us), c = id: prolong, if it still exists
local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000000 + tonumber(t[2])
for i, key in ipairs(KEYS) do
  local kind, a, b, c = ARGV[4*i-3], tonumber(ARGV[4*i-2]), tonumber(ARGV[4*i-1]), ARGV[4*i]
  if kind == 'gcra' then
    local tat = math.max(tonumber(redis.call('GET', key) or now), now)
    -- What was used beyond the limit is owed, but never for longer than one more period.
    local after = math.min(tat + math.ceil(tonumber(c) * b / a), now + 2 * b)
    if after > now then
      redis.call('SET', key, string.format('%.0f', after), 'PX', math.ceil((after - now) / 1000) + 1)
    else
      redis.call('DEL', key)
    end
  elseif kind == 'cnt' then
    local window = math.floor(now / b)
    local found = redis.call('HMGET', key, 'w', 'n')
    if tonumber(found[1] or -1) == window then
      redis.call('HSET', key, 'n', string.format('%.0f', math.max(0, tonumber(found[2]) + tonumber(c))))
    end
  elseif kind == 'sem' then
    redis.call('ZREM', key, c)
  elseif kind == 'renew' then
    redis.call('ZADD', key, 'XX', string.format('%.0f', now + b), c)
    redis.call('PEXPIRE', key, math.ceil(b / 1000) + 1)
  end
end
return 0
