-- admit, version 1. All or nothing: first every operation is looked at, then, if none refuses, all are written.
--
-- KEYS[i] and ARGV[4i-3 .. 4i] are operation i: kind, a, b, c.
--   rev   a = issued at (Unix s)                   refuse when the mark's time >= a
--   rec   a = etag known to the caller             refuse when the record is missing or has another etag
--   gcra  a = limit, b = period (us), c = cost     value: "level:time", units in the bucket at a time (us). The bucket
--                                                  drains at limit/period: GCRA in its leaky-bucket form (ITU-T I.371)
--   win   a = limit, b = period (us), c = cost     sorted set: one member per admitted unit, scored by its time
--   cnt   a = limit, b = period (us), c = cost     hash: w = window number, n = units
--   sem   a = limit, b = lease (us),  c = id       sorted set: permits, scored by their end
-- Answer: one string, "status i x remaining_1 reset_1 remaining_2 reset_2 ...", times in us, one pair per gcra, win and cnt.
--   status 0 admitted; 1 limited by operation i, again after x (-1: never), the pairs as they stand without this request;
--   2 revoked; 3 record missing; 4 record changed, x is the record.
--
-- Only Redis's clock counts. It may step back: then what lies ahead is pulled back to now, and written so even by a refusal,
-- so that nobody is locked out for longer than a period.
local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000000 + tonumber(t[2])
local plans, standing, taken, refusal = {}, {0, 0, 0}, {0, 0, 0}, nil

local function int(n) return string.format('%.0f', n) end
-- Whole numbers below 1e14, which is three years in us and more than a limit may be, are written whole.
local function answer(list) return table.concat(list, ' ') end
local function refuse(i, after) refusal = refusal or {i, after} end
local function pair(list, remaining, reset)
  list[#list+1] = math.max(0, math.floor(remaining + 0.001))
  list[#list+1] = math.max(0, math.ceil(reset))
end

for i, key in ipairs(KEYS) do
  local kind, a, b, c = ARGV[4*i-3], ARGV[4*i-2], tonumber(ARGV[4*i-1]), ARGV[4*i]
  if kind == 'rev' then
    local mark = redis.call('GET', key)
    if mark and tonumber(mark) >= tonumber(a) then return '2 ' .. i .. ' 0' end
  elseif kind == 'rec' then
    local record = redis.call('GET', key)
    if not record then return '3 ' .. i .. ' 0' end
    if string.sub(record, 1, #a + 1) ~= a .. '|' then return '4 ' .. i .. ' ' .. record end
  elseif kind == 'gcra' then
    local limit, cost = tonumber(a), tonumber(c)
    local level, since = string.match(redis.call('GET', key) or '0:0', '^([%d.]+):(%d+)$')
    level, since = tonumber(level), tonumber(since)
    local function put()
      redis.call('SET', key, string.format('%.6f:%.0f', level, now), 'PX', math.ceil(level * b / limit / 1000) + 1)
    end
    if since > now then put() else level = math.max(0, level - (now - since) * limit / b) end
    pair(standing, limit - level, level * b / limit)
    -- Fractions of a unit are kept; the tolerance is for their rounding only.
    local over = level + cost - limit
    if cost > limit then refuse(i, -1)
    elseif over > 0.001 then refuse(i, math.ceil(over * b / limit))
    else
      level = level + cost
      pair(taken, limit - level, level * b / limit)
      if cost > 0 then plans[#plans+1] = put end
    end
  elseif kind == 'win' then
    local limit, cost = tonumber(a), tonumber(c)
    redis.call('ZREMRANGEBYSCORE', key, '-inf', int(now - b))
    for _, member in ipairs(redis.call('ZRANGEBYSCORE', key, '(' .. int(now), '+inf')) do
      redis.call('ZADD', key, int(now), member)
    end
    local count = redis.call('ZCARD', key)
    local function left_at(n) return tonumber(redis.call('ZRANGE', key, n, n, 'WITHSCORES')[2] or now) + b end
    pair(standing, limit - count, count > 0 and left_at(0) - now or 0)
    if cost > limit then refuse(i, -1)
    -- Room comes when the oldest units that stand in the way have left.
    elseif count + cost > limit then refuse(i, left_at(count + cost - limit - 1) - now)
    else
      pair(taken, limit - count - cost, count + cost > 0 and left_at(0) - now or 0)
      if cost > 0 then
        plans[#plans+1] = function()
          local seq = redis.call('ZREVRANGE', key, 0, 0)[1]
          seq = seq and tonumber(string.match(seq, '%d+$')) or 0
          for n = 1, cost do redis.call('ZADD', key, int(now), int(now) .. '-' .. int((seq + n) % 1000000007)) end
          redis.call('PEXPIRE', key, math.ceil(b / 1000) + 1)
        end
      end
    end
  elseif kind == 'cnt' then
    local limit, cost = tonumber(a), tonumber(c)
    local window = math.floor(now / b)
    local ends = (window + 1) * b - now
    local found = redis.call('HMGET', key, 'w', 'n')
    local w, n = tonumber(found[1] or -1), tonumber(found[2] or 0)
    local function put()
      redis.call('HSET', key, 'w', int(window), 'n', int(n))
      redis.call('PEXPIRE', key, math.ceil(ends / 1000) + 1)
    end
    if w > window then put() elseif w < window then n = 0 end
    pair(standing, limit - n, ends)
    if cost > limit then refuse(i, -1)
    elseif n + cost > limit then refuse(i, ends)
    else
      n = n + cost
      pair(taken, limit - n, ends)
      if cost > 0 then plans[#plans+1] = put end
    end
  elseif kind == 'sem' then
    redis.call('ZREMRANGEBYSCORE', key, '-inf', int(now))
    for _, id in ipairs(redis.call('ZRANGEBYSCORE', key, '(' .. int(now + b), '+inf')) do
      redis.call('ZADD', key, int(now + b), id)
    end
    if redis.call('ZCARD', key) >= tonumber(a) and not redis.call('ZSCORE', key, c) then refuse(i, 1000000)
    else
      plans[#plans+1] = function()
        redis.call('ZADD', key, int(now + b), c)
        redis.call('PEXPIRE', key, math.ceil(b / 1000) + 1)
      end
    end
  else
    return redis.error_reply('admit v1: unknown operation ' .. kind)
  end
end
if refusal then
  standing[1], standing[2], standing[3] = 1, refusal[1], refusal[2]
  return answer(standing)
end
for _, plan in ipairs(plans) do plan() end
return answer(taken)
